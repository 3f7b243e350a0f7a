"use strict";
(() => {
  const WIDEST = 860;
  const given = JSON.parse(document.querySelector("#charts").textContent);
  const power = (value) => value === 1 ? "1" : value.toExponential(0).replace("+", "");
  const tipWidth = (width) => Math.min(30, width / 28); // in em: about half of a chart
  const scales = (marks) => ({
    color: { domain: marks.map((m) => m.name), range: marks.map((m) => m.colour) },
    symbol: { domain: marks.map((m) => m.name), range: marks.map((m) => m.symbol), legend: true },
  });
  const log = { type: "log", nice: true, ticks: 4, tickFormat: power, grid: true };

  const front = ({ marks, points }, width) => Plot.plot({
    width, height: 340, marginLeft: 52, marginBottom: 40, ...scales(marks), r: { type: "identity" },
    x: { label: "median latency in ms; line: 10th to 90th percentile", zero: true, nice: true, grid: true, labelArrow: "none", labelAnchor: "left" },
    y: { ...log, label: "MAE of masks (log)", labelArrow: "none" },
    marks: [
      Plot.line(points.filter((p) => p.best), { x: "ms", y: "mae", curve: "step-after", strokeOpacity: .6, strokeDasharray: "4 3" }),
      Plot.ruleY(points, { x1: "low", x2: "high", y: "mae", stroke: "name", strokeWidth: 2 }),
      Plot.dot(points, { x: "ms", y: "mae", r: (p) => p.best ? 7 : 4.5, fill: "name", symbol: "name", stroke: "currentColor", strokeWidth: .8, sort: "ms", ariaLabel: "text" }),
      Plot.tip(points, Plot.pointer({ x: "ms", y: "mae", title: "text", lineWidth: tipWidth(width) })),
    ],
  });

  // The name of a row stands above its strip, so that it is whole on every screen.
  const distribution = ({ log: isLog, marks, strips, samples }, width) => Plot.plot({
    width, height: 40 + 52 * strips.length, marginLeft: 14, marginRight: 14, marginTop: 4, marginBottom: 24, color: scales(marks).color,
    x: { ...(isLog ? log : { zero: true, grid: true }), label: null },
    y: { type: "band", domain: marks.map((m) => m.name), axis: null, padding: 0 },
    marks: [
      Plot.tickX(samples, { x: "value", y: "name", stroke: "name", strokeOpacity: .45, strokeWidth: 1.5, insetTop: 22, insetBottom: 5 }),
      Plot.tickX(strips, { x: "high", y: "name", insetTop: 19, insetBottom: 2 }),
      Plot.tickX(strips, { x: "middle", y: "name", strokeWidth: 3, insetTop: 19, insetBottom: 2, ariaLabel: "text" }),
      Plot.text(strips, { text: "name", y: "name", frameAnchor: "left", dy: -16 }),
      Plot.tip([...strips.map((s) => ({ ...s, value: s.middle })), ...samples.filter((s) => s.text)],
        Plot.pointer({ x: "value", y: "name", title: "text", lineWidth: tipWidth(width) })),
    ],
  });

  // Plot answers to a pointer; a point in focus gets the same answer, and the arrow keys go from point to point.
  const reach = (svg) => {
    const points = [...svg.querySelectorAll("g[aria-label] > [aria-label]:not(g)")];
    const point = (type, { left, top, width, height }) => svg.dispatchEvent(
      new PointerEvent(type, { clientX: left + width / 2, clientY: top + height / 2, pointerType: "mouse" }));
    points.forEach((one, i) => {
      one.setAttribute("role", "img");
      one.setAttribute("tabindex", i ? -1 : 0);
      one.addEventListener("focus", () => point("pointermove", one.getBoundingClientRect()));
      one.addEventListener("blur", () => point("pointerleave", one.getBoundingClientRect()));
      one.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        points[(i + step + points.length) % points.length].focus();
      });
    });
  };

  document.querySelectorAll(".chart").forEach((box, i) => {
    const draw = () => {
      const width = Math.min(WIDEST, box.clientWidth);
      if (!width || box.dataset.width === String(width)) return;
      box.dataset.width = width;
      const made = (given[i].points ? front : distribution)(given[i], width);
      const svg = made.matches("svg") ? made : made.querySelector(":scope > svg");
      svg.setAttribute("role", "group");
      svg.setAttribute("aria-label", box.dataset.title);
      reach(svg);
      box.replaceChildren(made);
    };
    draw();
    new ResizeObserver(() => requestAnimationFrame(draw)).observe(box);
  });
})();
