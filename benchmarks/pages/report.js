"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);

  one("#theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // The table: a click on a title sorts, a second one turns the order; cells without a number stay last.
  const body = one("#results tbody");
  all("#results thead button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.closest("th");
    const up = head.getAttribute("aria-sort") !== "ascending";
    all("#results th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[column];
      return cell.classList.contains("n") ? parseFloat(cell.dataset.v) : cell.textContent.trim().toLowerCase();
    };
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x !== x || y !== y) return (x !== x) - (y !== y);
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    };
    body.append(...all("tr", body).sort(order));
  }));
  const filter = one("#filter"), device = one("#device"), counted = one("#counted");
  const narrow = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((w) => text.includes(w)) && (!device.value || row.dataset.device === device.value);
      row.hidden = !fits;
      shown += fits;
    }
    counted.textContent = `${shown} of ${body.rows.length} rows`;
  };
  filter.addEventListener("input", narrow);
  device.addEventListener("change", narrow);
  narrow();

  // Photos: two views of a photo beside each other, parted by a slider.
  const cases = one(".cases");
  if (!cases) return;
  const artifact = one("#artifact"), left = one("#left"), right = one("#right");
  const view = () => {
    const chosen = artifact.value;
    for (const figure of all("figure", cases)) {
      for (const image of all("img", figure)) {
        const fits = (name) => image.dataset.view === name && (!image.dataset.artifact || image.dataset.artifact === chosen);
        image.className = fits(left.value) ? "left" : "";
        if (fits(right.value)) image.className = "right";
      }
      const found = all("[data-of]", figure).find((span) => span.dataset.of === chosen);
      all("[data-of]", figure).forEach((span) => { span.hidden = span !== found; });
      figure.dataset.mae = found ? found.dataset.mae : "0";
    }
    cases.append(...all("figure", cases).sort((a, b) => b.dataset.mae - a.dataset.mae));
  };
  [artifact, left, right].forEach((select) => select.addEventListener("change", view));
  all("input[type=range]", cases).forEach((slider) => slider.addEventListener("input", () => {
    slider.closest("figure").style.setProperty("--cut", `${slider.value}%`);
  }));
  view();
})();
