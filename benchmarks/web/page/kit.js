// The page of a kit: runs one artifact without a bench behind it, and saves the result as a file.

import { agentData, graphics, keepAwake } from "./device.js";
import { remarks, undisturbed } from "./turns.js";
import * as view from "./view.js";

const find = (id) => document.getElementById(id);
let kit;
let seq = 0;
let open = null; // the open worker and its unit

async function bytes(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.arrayBuffer();
}

// A service worker gives the headers that threads need, on hosts that send none; the page loads once more then.
async function isolate() {
  if (self.crossOriginIsolated || !self.isSecureContext || !navigator.serviceWorker) return;
  await navigator.serviceWorker.register("sw.js");
  await navigator.serviceWorker.ready;
  if (!sessionStorage.getItem("u2export-isolated")) {
    sessionStorage.setItem("u2export-isolated", "yes");
    location.reload();
    await new Promise(() => {});
  }
}

async function units() {
  const found = [{ title: "WebAssembly, 1 thread", provider: "wasm", threads: 1 }];
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  if (threads > 1) found.push({ title: `WebAssembly, ${threads} threads`, provider: "wasm", threads });
  const adapter = kit.precision === "int8" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
  if (adapter) {
    const software = adapter.info?.isFallbackAdapter || adapter.info?.architecture === "swiftshader";
    found.push({ title: software ? "WebGPU (simulated)" : "WebGPU", provider: "webgpu", threads: 1 });
  }
  return found;
}

function ask(worker, message, transfer = []) {
  seq += 1;
  return new Promise((done, fail) => {
    worker.onmessage = ({ data }) => (data.reply.error ? fail(new Error(data.reply.error.problem)) : done(data));
    worker.onerror = (event) => fail(new Error(event.message ?? "the Web Worker failed"));
    worker.postMessage({ seq, ...message }, transfer);
  });
}

async function opened(unit) {
  if (open?.unit === unit) return open;
  open?.worker.terminate();
  const [module, binary] = unit.provider === "webgpu"
    ? ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"]
    : ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm"];
  view.say("Loading …");
  const [wasm, model] = await Promise.all([bytes(`ort/${binary}`), bytes(kit.artifact)]);
  const worker = new Worker("worker.js", { type: "module" });
  const runtime = new URL(`ort/${module}`, location.href).href;
  const { reply } = await ask(worker, { do: "open", runtime, wasm, provider: unit.provider, threads: unit.threads, model, more: [] }, [model]);
  open = { unit, worker, reply };
  return open;
}

const input = (data) => ({ bytes: data, entry: kit.entry, output: kit.graph_output, type: kit.input_type, dims: kit.dims });

async function measure(unit, model) {
  open?.worker.terminate(); // a fresh one, as a bench takes it
  open = null;
  const { worker, reply } = await opened(unit);
  const maps = {};
  view.clearTimes(unit.title);
  view.caption("expected mask");
  for (const [i, name] of kit.pictures.entries()) {
    view.progress({ stage: "masks", done: i, total: kit.pictures.length });
    const found = await ask(worker, { do: "predict", ...input(await bytes(`inputs/${name}.bin`)) });
    view.showPicture(await bytes(`expected/${name}.png`), "image/png");
    if (found.map) view.showMask(found.map, kit.shape[1], kit.shape[0]);
    maps[name] = found.reply.d0;
  }
  const turn = async (message) => (await undisturbed(() => ask(worker, message), view.say)).reply;
  view.say("Warming up");
  const first = input(await bytes(`inputs/${kit.pictures[0]}.bin`));
  const warm = await turn({ do: "warm", limit: Math.max(2, kit.seconds), ...first });
  const notes = new Set([...reply.notes, ...warm.notes, ...(await remarks(reply.clock_ms, warm.warmup_ns))]);
  const rounds = [];
  while (rounds.length < kit.rounds) {
    view.progress({ stage: "timing", done: rounds.length, total: kit.rounds });
    const timed = await turn({ do: "time", samples: Math.ceil(kit.samples / kit.rounds), seconds: kit.seconds / kit.rounds });
    rounds.push(timed.ns);
    for (const note of timed.notes) notes.add(note);
    view.addTimes(unit.title, timed.ns);
  }
  const data = await agentData();
  if (unit.title.includes("simulated")) notes.add("simulated: WebGPU ran on a software adapter");
  const ms = (ns) => ns / 1e6;
  return {
    format: kit.format, tool: "u2export kit web", name: kit.artifact, artifact_sha256: kit.artifact_sha256,
    runtime: "ONNX Runtime Web", runtime_version: kit.runtime_version, compute_unit: `browser, ${unit.title}`,
    threads: reply.threads, device: {
      model: model || data?.model || "unknown device", arch: data?.architecture ?? "", cores: navigator.hardwareConcurrency,
      os: [data?.platform, data?.platformVersion].filter(Boolean).join(" "),
    },
    browser: navigator.userAgent, gpu: graphics(), isolated: self.crossOriginIsolated, clock_step_us: 1000 * reply.clock_ms,
    predict_ms: rounds.flat().map(ms), load_ms: [ms(reply.load_ns)], first_ms: ms(warm.first_ns), steady: warm.steady,
    timed: "from the input of the network to d0, in a browser", maps, notes: [...notes],
  };
}

function offer(result, unit) {
  const link = find("save");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result)], { type: "application/json" }));
  link.download = `${kit.artifact}-${unit.title.replace(/\W+/g, "-").toLowerCase()}.json`;
  link.hidden = false;
}

// A photo of the visitor

function pixels(image) {
  const [height, width] = kit.shape;
  const canvas = find("picture");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  find("masks").hidden = false;
  view.caption("photo");
  return context.getImageData(0, 0, width, height).data;
}

function tensor(rgba) {
  const [height, width] = kit.shape;
  const area = height * width;
  if (kit.input_type === "uint8") {
    const made = new Uint8Array(3 * area);
    for (let i = 0; i < area; i += 1) made.set(rgba.subarray(4 * i, 4 * i + 3), 3 * i);
    return made.buffer;
  }
  let most = 1;
  for (let i = 0; i < area; i += 1) most = Math.max(most, rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]);
  const made = new Float32Array(3 * area);
  for (let c = 0; c < 3; c += 1)
    for (let i = 0; i < area; i += 1) made[c * area + i] = (rgba[4 * i + c] / most - kit.mean[c]) / kit.std[c];
  return made.buffer;
}

async function segment(file) {
  find("bench").hidden = false;
  const image = await createImageBitmap(file, { imageOrientation: "from-image" });
  const fed = tensor(pixels(image));
  const { worker } = await opened(chosen());
  view.say("Computing the mask");
  const found = await ask(worker, { do: "predict", ...input(fed) });
  view.showMask(found.map, kit.shape[1], kit.shape[0]);
  view.say(`Mask made in ${(found.reply.inference_ns / 1e6).toFixed(0)} ms`);
}

let choices = [];
const chosen = () => choices[find("unit").selectedIndex];
let busy = false;

async function alone(work) {
  if (busy) return;
  busy = true;
  for (const id of ["go", "photo", "unit"]) find(id).disabled = true;
  try {
    await work();
  } catch (error) {
    open?.worker.terminate();
    open = null;
    view.fail(String(error.message ?? error));
  }
  busy = false;
  for (const id of ["go", "photo", "unit"]) find(id).disabled = false;
}

async function main() {
  kit = await (await fetch("kit.json")).json();
  find("name").textContent = kit.artifact;
  await isolate();
  choices = await units();
  find("unit").replaceChildren(...choices.map(({ title }) => new Option(title)));
  view.ready((await agentData())?.model ?? "", (model) => alone(async () => {
    find("save").hidden = true;
    keepAwake();
    const unit = chosen();
    offer(await measure(unit, model), unit);
    view.say("Finished. Save the result, and send it to whoever asked for it.");
    find("bar").value = find("bar").max;
    find("count").textContent = "";
  }), true);
  const photo = find("photo");
  photo.disabled = kit.mean.length !== 3;
  photo.addEventListener("change", () => photo.files[0] && alone(() => segment(photo.files[0])));
}

main().catch((error) => view.fail(String(error.message ?? error)));
