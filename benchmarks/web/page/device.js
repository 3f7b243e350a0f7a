// What the browser tells about its device, and whether the page stays in front.

let hidden = 0;

export const hiddenTimes = () => hidden;

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible") hidden += 1;
});

export async function keepAwake() {
  if (document.visibilityState === "visible") await navigator.wakeLock?.request("screen").catch(() => null);
}

export function clockStep() {
  let least = Infinity;
  for (let i = 0, last = performance.now(); i < 20 && least > 0; ) {
    const time = performance.now();
    if (time > last) {
      least = Math.min(least, time - last);
      last = time;
      i += 1;
    }
  }
  return least * 1000;
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
