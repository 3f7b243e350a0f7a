// What the browser tells about its device, and whether the page stays in front.

// Milliseconds. A page whose timers stand still for so long was frozen, or the device slept.
const FROZEN = 5000;
const BEAT = 500;
let hidden = 0;
let frozen = 0;

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible") hidden += 1;
});
document.addEventListener("freeze", () => {
  frozen += 1;
});

// Watch a turn; the returned function ends this, and tells what disturbed the turn: "hidden", "frozen", or "".
export function disturbances() {
  const before = { hidden, frozen };
  let longest = 0;
  let last = Date.now();
  const beat = () => {
    longest = Math.max(longest, Date.now() - last);
    last = Date.now();
  };
  const timer = setInterval(beat, BEAT);
  return () => {
    clearInterval(timer);
    beat();
    if (hidden !== before.hidden) return "hidden";
    return frozen !== before.frozen || longest > FROZEN ? "frozen" : "";
  };
}

export async function keepAwake() {
  if (document.visibilityState === "visible") await navigator.wakeLock?.request("screen").catch(() => null);
}

export async function battery() {
  const { charging, level } = (await navigator.getBattery?.().catch(() => null)) ?? {};
  return { charging, level };
}

// The least time between two pictures; 0 where the browser draws none.
export async function frameStep() {
  const drawn = (async () => {
    let least = Infinity;
    for (let i = 0, last = 0; i < 20; i += 1) {
      const time = await new Promise((done) => requestAnimationFrame(done));
      if (last) least = Math.min(least, time - last);
      last = time;
    }
    return least;
  })();
  return Promise.race([drawn, new Promise((done) => setTimeout(() => done(0), 3000))]);
}

export function graphics() {
  const gl = document.createElement("canvas").getContext("webgl");
  const named = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = named ? gl.getParameter(named.UNMASKED_RENDERER_WEBGL) : "";
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return name;
}

export async function adapter() {
  const found = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!found) return null;
  const info = found.info ?? {};
  const fallback = info.isFallbackAdapter ?? found.isFallbackAdapter ?? false;
  const { vendor, architecture, device, description } = info;
  return { vendor, architecture, device, description, fallback, features: [...found.features] };
}

export async function agentData() {
  const data = navigator.userAgentData;
  if (!data) return null;
  const wanted = ["architecture", "bitness", "model", "platformVersion", "fullVersionList"];
  const values = await data.getHighEntropyValues(wanted).catch(() => ({}));
  const { architecture, bitness, model, platform, platformVersion, fullVersionList } = values;
  return { architecture, bitness, model, platform, platformVersion, brands: fullVersionList ?? data.brands };
}
