// The page of a bench: tells what it is, asks for work, and hands the work to one Web Worker for each row.

import { clockStep } from "./clock.js";
import { adapter, agentData, battery, graphics, keepAwake } from "./device.js";
import { Refused, remarks, undisturbed } from "./turns.js";
import * as view from "./view.js";

const workers = new Map();
let session = "";
let after = 0;
let over = false;
const runtimes = new Map();

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const headers = () => ({ "X-Session": session });

// Who this is

async function identity() {
  const [data, gpu] = await Promise.all([agentData(), adapter()]);
  return {
    agent: navigator.userAgent, data, gpu, graphics: graphics(), cores: navigator.hardwareConcurrency,
    memory: navigator.deviceMemory ?? 0, isolated: self.crossOriginIsolated, secure: self.isSecureContext,
    clock_us: 1000 * clockStep(),
  };
}

async function state() {
  const { charging, level } = await battery();
  return { visible: document.visibilityState === "visible", charging, battery: level };
}

// The line to the bench

async function fetched(path, options) {
  for (let tries = 0; ; tries += 1) {
    try {
      const response = await fetch(path, { cache: "no-store", ...options });
      if (response.ok) return response;
      if (response.status !== 429 || tries > 30) throw Object.assign(new Error(`${path}: ${response.status}`), { final: true });
    } catch (error) {
      if (error.final || tries > 60) throw error;
    }
    await pause(1000);
  }
}

async function answer(seq, reply) {
  const body = JSON.stringify({ seq, reply, state: await state() });
  await fetched("answer", { method: "POST", headers: headers(), body });
}

async function bytes(name) {
  return (await fetched(`private/${name}`, { headers: headers() })).arrayBuffer();
}

async function runtime(provider) {
  const [module, binary] = provider === "webgpu"
    ? ["ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"]
    : ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm"];
  if (!runtimes.has(binary)) runtimes.set(binary, await (await fetched(`ort/${binary}`)).arrayBuffer());
  return { runtime: new URL(`ort/${module}`, location.href).href, wasm: runtimes.get(binary) };
}

// Work

function newWorker(number) {
  const made = new Worker("worker.js", { type: "module" });
  const waiting = new Map();
  made.onmessage = ({ data }) => {
    waiting.get(data.seq)?.(data);
    waiting.delete(data.seq);
  };
  made.onerror = (event) => {
    event.preventDefault();
    const problem = `its Web Worker failed: ${event.message ?? "no message"}`;
    for (const [seq, done] of waiting) done({ seq, reply: { error: { kind: "crashed", problem, hint: "" } } });
    waiting.clear();
  };
  const ask = (message, transfer) =>
    new Promise((done) => {
      waiting.set(message.seq, done);
      made.postMessage(message, transfer);
    });
  workers.set(number, { ask, end: () => made.terminate() });
  return workers.get(number);
}

async function work(message) {
  const { worker, ...request } = message;
  if (request.do === "open") {
    const { runtime: _, ...rest } = request;
    const model = await bytes(request.model);
    const more = await Promise.all(request.more.map(async ({ path, file }) => ({ path, data: new Uint8Array(await bytes(file)) })));
    const prepared = { ...rest, ...(await runtime(request.provider)), model, more };
    const made = newWorker(worker);
    const found = await made.ask(prepared, [model]);
    made.clock = found.reply.clock_ms;
    return found;
  }
  if (request.input) request.bytes = await bytes(request.input);
  const row = workers.get(worker);
  if (request.do === "predict") {
    const picture = request.picture && (await bytes(request.picture));
    return { ...(await row.ask(request, [request.bytes])), picture };
  }
  const found = await undisturbed(() => row.ask(request), view.say);
  if (found.reply.warmup_ns) found.reply.notes.push(...(await remarks(row.clock, found.reply.warmup_ns)));
  return found;
}

// A picture that cannot be drawn must not end the bench.
async function show(message, { map, picture, reply }) {
  try {
    if (picture) await view.showPicture(picture);
    if (map) view.showMask(map, message.width, message.height);
    if (reply.ns) view.addTimes(message.row, reply.ns);
  } catch (error) {
    console.warn(error);
  }
}

async function handle(message) {
  if (message.do === "end") {
    over = true;
    view.finish(message.how);
    await answer(message.seq, {});
    return;
  }
  if (message.do === "kill") {
    workers.get(message.worker)?.end();
    workers.delete(message.worker);
    return;
  }
  let found;
  try {
    found = await work(message);
  } catch (error) {
    const kind = error instanceof Refused ? "refused" : "failed";
    found = { reply: { error: { kind, problem: String(error?.message ?? error), hint: "" } } };
  }
  await show(message, found); // before the answer: the next turn must not share the processor with drawing
  await answer(message.seq, found.reply);
}

async function poll() {
  while (!over) {
    const { messages, status } = await (await fetched(`next?after=${after}`, { headers: headers() })).json();
    if (status?.stage) view.progress(status);
    for (const message of messages) {
      after = message.seq;
      handle(message).catch(lost);
    }
  }
}

function lost(error) {
  if (over) return;
  over = true;
  view.fail(`The connection to your computer is gone (${error.message ?? error}). Start the bench there again.`);
}

async function begin(model) {
  view.say("Starting …");
  const told = { ...(await identity()), model };
  const response = await fetch("hello", { method: "POST", body: JSON.stringify(told) });
  if (!response.ok) {
    view.fail((await response.json().catch(() => ({}))).problem ?? `The bench refused this page (${response.status}).`);
    return;
  }
  session = (await response.json()).session;
  keepAwake();
  poll().catch(lost);
}

document.addEventListener("visibilitychange", () => {
  if (session && !over) keepAwake();
});
window.addEventListener("pagehide", () => {
  if (session && !over) navigator.sendBeacon("bye", JSON.stringify({ session }));
});

agentData().then((data) => view.ready(data?.model ?? "", begin));
