// One row: opens one artifact in onnxruntime-web and answers the requests of the bench, one after the other.

import { clockStep } from "./clock.js";

const WINDOW = 5;
const STEADY = 0.05;
const MOST_WARMUPS = 100;
let ort;
let session;
let fed;
let output;
const remarks = [];

const ns = (ms) => Math.max(0, Math.round(ms * 1e6));
const now = () => performance.now();

// onnxruntime-web tells on the console what it left to another provider.
for (const name of ["warn", "error"]) {
  const print = console[name].bind(console);
  console[name] = (...words) => {
    const line = words.join(" ");
    if (/not assigned to the preferred execution provider/.test(line)) remarks.push("some operators ran in WebAssembly");
    else print(...words);
  };
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

function steady(times) {
  if (times.length < 2 * WINDOW) return false;
  const before = median(times.slice(-2 * WINDOW, -WINDOW));
  return Math.abs(median(times.slice(-WINDOW)) - before) < STEADY * before;
}

async function infer() {
  const start = now();
  const results = await session.run(fed, [output]);
  return [now() - start, results[output]];
}

async function timed() {
  const [ms, result] = await infer();
  result.dispose();
  return ns(ms);
}

function feed({ entry, type, dims, bytes, output: name }) {
  const kinds = { float32: Float32Array, float64: Float64Array, uint8: Uint8Array, float16: globalThis.Float16Array ?? Uint16Array };
  fed = { [entry]: new ort.Tensor(type, new kinds[type](bytes), dims) };
  output = name;
}

function base64(view) {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}

const actions = {
  async open({ runtime, wasm, provider, threads, model, more }) {
    const start = now();
    ort = await import(runtime);
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmBinary = wasm;
    const imported = now();
    session = await ort.InferenceSession.create(new Uint8Array(model), {
      executionProviders: [provider],
      graphOptimizationLevel: "all",
      externalData: more,
    });
    const end = now();
    const opening_ns = { import: ns(imported - start), compile: ns(end - imported) };
    return { load_ns: ns(end - start), opening_ns, threads: ort.env.wasm.numThreads, clock_ms: clockStep(), notes: [...new Set(remarks)] };
  },

  async predict(request) {
    feed(request);
    const [ms, result] = await infer();
    const reply = { inference_ns: ns(ms), type: result.type, dims: [...result.dims], d0: base64(result.data) };
    const map = result.type === "float32" ? result.data.slice() : null;
    result.dispose();
    return { reply, map };
  },

  async warm(request) {
    feed(request);
    const [ms, result] = await infer();
    result.dispose();
    const times = [await timed()];
    const end = now() + request.limit * 1000;
    let done;
    while (!(done = steady(times)) && times.length < MOST_WARMUPS && now() < end) times.push(await timed());
    return { first_ns: ns(ms), warmup_ns: times, steady: done };
  },

  async time({ samples, seconds }) {
    await timed(); // not counted: the turns of the other rows have emptied the caches
    const times = [];
    const end = now() + seconds * 1000;
    while (times.length < samples || now() < end) times.push(await timed());
    return { ns: times };
  },
};

self.onmessage = async ({ data }) => {
  const { seq, do: name, ...request } = data;
  try {
    const made = await actions[name](request);
    const { reply, map } = made.reply ? made : { reply: made };
    self.postMessage({ seq, reply, map }, map ? [map.buffer] : []);
  } catch (error) {
    self.postMessage({ seq, reply: { error: { kind: "failed", problem: String(error?.message ?? error), hint: "" } } });
  }
};
