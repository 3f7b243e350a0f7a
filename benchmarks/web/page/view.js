// What the page shows.

const find = (id) => document.getElementById(id);
const COLOURS = 6;
const LARGEST = 640;
const rows = new Map();

export function ready(model, begin, again = false) {
  const form = find("start");
  const field = find("model");
  field.value = model || recall();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    form.hidden = !again;
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
  count(total > 1 ? `${done} of ${total}` : "");
}

export function count(text) {
  find("count").textContent = text;
}

export async function showPicture(bytes, type = "image/jpeg") {
  paint(await createImageBitmap(new Blob([bytes], { type })));
}

// Draw a picture in its own shape; its mask gets the same shape, whatever that of the network is.
export function paint(picture) {
  const [width, height] = [picture.videoWidth || picture.width, picture.videoHeight || picture.height];
  const scale = Math.min(1, LARGEST / Math.max(width, height));
  const canvas = find("picture");
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  for (const id of ["picture", "mask"]) find(id).style.aspectRatio = `${width} / ${height}`;
  find("masks").hidden = false;
}

export function caption(text) {
  find("caption").textContent = text;
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

export function clearTimes(name) {
  rows.delete(name);
}

export function addTimes(name, ns) {
  const row = rows.get(name) ?? { count: 0, rounds: [] };
  const sorted = Float64Array.from(ns, (value) => value / 1e6).sort();
  const at = (share) => sorted[Math.floor(share * (sorted.length - 1))];
  row.rounds.push({ low: at(0.1), middle: at(0.5), high: at(0.9) });
  row.count += sorted.length;
  rows.set(name, row);
  draw();
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const shown = (ms) => (ms >= 100 ? ms.toFixed(0) : ms.toFixed(ms >= 10 ? 1 : 2));

const several = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

function draw() {
  const most = [...rows.values()].flatMap(({ rounds }) => rounds).reduce((top, { high }) => Math.max(top, high), 0);
  find("rows").replaceChildren(...[...rows].map(([name, row], i) => line(name, row, most, i % COLOURS)));
  find("times").hidden = false;
}

// One row: a bar for the median of each round, and a thin line from its 10th to its 90th percentile.
function line(name, { count, rounds }, most, colour) {
  const item = document.createElement("li");
  const label = document.createElement("p");
  const value = document.createElement("strong");
  value.textContent = `${shown(median(rounds.map(({ middle }) => middle)))}\u00a0ms`;
  label.append(`${name} `, value, ` (${several(rounds.length, "round")}, ${several(count, "sample")})`);
  const plot = svg("svg", { viewBox: "0 0 300 40", preserveAspectRatio: "none", "aria-hidden": "true" });
  plot.classList.add(`colour${colour}`);
  const width = 300 / Math.max(rounds.length, 10);
  const y = (ms) => 40 - (38 * ms) / Math.max(most, 1e-6);
  rounds.forEach(({ low, middle, high }, i) => {
    plot.append(svg("rect", { x: (i + 0.1) * width, y: y(middle), width: width * 0.8, height: 40 - y(middle) }));
    plot.append(svg("rect", { class: "range", x: (i + 0.45) * width, y: y(high), width: width * 0.1, height: y(low) - y(high) }));
  });
  item.append(label, plot);
  return item;
}

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function finish(how) {
  find("bar").value = find("bar").max;
  count("");
  say(how === "finished" ? "Finished. The report is on your computer; you may close this page." : "The bench was stopped on your computer.");
}

export function fail(text) {
  const alert = find("problem");
  alert.textContent = text[0].toUpperCase() + text.slice(1);
  alert.hidden = false;
  find("bar").hidden = true;
  say("Stopped");
}
