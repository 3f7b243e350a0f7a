// The page of a kit: runs one artifact without a bench behind it, and saves the result as a file.

import { agentData, graphics, keepAwake } from "./device.js";
import { camera, hasCamera, tensor } from "./pictures.js";
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

async function opened(unit, say = view.say) {
  if (open?.unit === unit) return open;
  open?.worker.terminate();
  const [module, binary] = unit.provider === "webgpu"
    ? ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"]
    : ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm"];
  say("Loading …");
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
  made("mask, made here");
  tell("");
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
    runtime: "ONNX Runtime Web", runtime_version: kit.runtime_version, compute_unit: `browser, ${unit.title.replace("WebAssembly", "WASM")}`,
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

// Masks of the visitor's own pictures

const tell = (text) => (find("told").textContent = text);
const made = (text) => (find("made").textContent = text);

async function segment(picture) {
  const fed = tensor(picture, kit);
  const { worker } = await opened(chosen(), tell);
  const { map, reply } = await ask(worker, { do: "predict", ...input(fed) });
  view.paint(picture);
  view.showMask(map, kit.shape[1], kit.shape[0]);
  made(`mask, made here in ${(reply.inference_ns / 1e6).toFixed(0)}\u00a0ms`);
}

async function photograph(file) {
  const image = await createImageBitmap(file, { imageOrientation: "from-image" });
  view.paint(image);
  view.caption("photo");
  tell("Computing the mask …");
  await segment(image);
  tell("The mask is ready.");
}

let live = null; // the running camera

async function film() {
  tell("Starting the camera …");
  live = await camera();
  find("camera").textContent = "Stop the camera";
  find("camera").disabled = false;
  view.caption("camera");
  try {
    while (live) {
      await segment(await createImageBitmap(live.picture));
      tell("Live: each picture of the camera gets its mask.");
    }
  } finally {
    stopFilming();
    find("camera").textContent = "Use the camera, live";
  }
  tell("The camera is off.");
}

function stopFilming() {
  live?.stop();
  live = null;
}

let choices = [];
const chosen = () => choices[find("unit").selectedIndex];
let busy = false;

function enable(free) {
  const colour = kit.mean.length === 3;
  for (const id of ["go", "unit"]) find(id).disabled = !free;
  for (const id of ["photo", "camera"]) find(id).disabled = !free || !colour;
}

// One work at a time.
async function alone(work) {
  if (busy) return;
  busy = true;
  enable(false);
  try {
    await work();
  } catch (error) {
    open?.worker.terminate();
    open = null;
    view.fail(String(error.message ?? error));
  }
  busy = false;
  enable(true);
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
    view.count("");
  }), true);
  const photo = find("photo");
  photo.addEventListener("change", () => photo.files[0] && alone(() => photograph(photo.files[0])));
  find("camera").hidden = !hasCamera();
  find("camera").addEventListener("click", () => (live ? stopFilming() : alone(film)));
  enable(true);
}

main().catch((error) => view.fail(String(error.message ?? error)));
