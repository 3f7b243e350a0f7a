// What the page shows.

const find = (id) => document.getElementById(id);
const COLOURS = 6;
const rows = new Map();

export function ready(model, begin) {
  const form = find("start");
  const field = find("model");
  field.value = model || recall();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    form.hidden = true;
    find("bench").hidden = false;
    remember(field.value);
    begin(field.value);
  });
  find("go").disabled = false;
}

function recall() {
  try {
    return localStorage.getItem("u2export-model") ?? "";
  } catch {
    return "";
  }
}

function remember(model) {
  try {
    localStorage.setItem("u2export-model", model);
  } catch {
    // A browser that stores nothing asks again.
  }
}

export function say(text) {
  find("stage").textContent = text;
}

export function progress({ stage, done, total }) {
  say(stage[0].toUpperCase() + stage.slice(1));
  const bar = find("bar");
  bar.max = Math.max(1, total);
  bar.value = done;
  find("count").textContent = total > 1 ? `${done} of ${total}` : "";
}

export async function showPicture(bytes) {
  const image = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
  const canvas = find("picture");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
  find("masks").hidden = false;
}

export function showMask(map, width, height) {
  const canvas = find("mask");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0; i < width * height; i += 1) {
    low = Math.min(low, map[i]);
    high = Math.max(high, map[i]);
  }
  for (let i = 0; i < width * height; i += 1) {
    const grey = (255 * (map[i] - low)) / Math.max(high - low, 1e-6);
    image.data.set([grey, grey, grey, 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  find("masks").hidden = false;
}

export function addTimes(row, ns) {
  const name = row ?? "this artifact";
  rows.set(name, [...(rows.get(name) ?? []), ...ns.map((value) => value / 1e6)]);
  draw();
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const shown = (ms) => (ms >= 100 ? ms.toFixed(0) : ms.toFixed(ms >= 10 ? 1 : 2));

function draw() {
  const list = find("rows");
  const most = Math.max(...[...rows.values()].flat());
  list.replaceChildren(...[...rows].map(([name, times], i) => line(name, times, most, i % COLOURS)));
  find("times").hidden = false;
}

function line(name, times, most, colour) {
  const item = document.createElement("li");
  const label = document.createElement("p");
  const value = document.createElement("strong");
  value.textContent = `${shown(median(times))} ms`;
  label.append(`${name} `, value, ` median of ${times.length}`);
  const plot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  plot.setAttribute("viewBox", "0 0 300 40");
  plot.setAttribute("preserveAspectRatio", "none");
  plot.setAttribute("aria-hidden", "true");
  plot.classList.add(`colour${colour}`);
  times.forEach((ms, i) => {
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = (38 * ms) / most;
    const width = 300 / Math.max(times.length, 30);
    for (const [key, size] of Object.entries({ x: i * width, y: 40 - height, width: width * 0.8, height })) dot.setAttribute(key, size);
    plot.append(dot);
  });
  item.append(label, plot);
  return item;
}

export function finish(how) {
  find("bar").value = find("bar").max;
  find("count").textContent = "";
  say(how === "finished" ? "Finished. The report is on your computer; you may close this page." : "The bench was stopped on your computer.");
}

export function fail(text) {
  const alert = find("problem");
  alert.textContent = text;
  alert.hidden = false;
  find("bar").hidden = true;
  say("Stopped");
}
