// Pictures of the visitor: what the network takes of a photo or of the camera's picture.

const canvas = document.createElement("canvas");

// The pixels of a picture at the size of the network, as RGBA.
function pixels(picture, [height, width]) {
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

// The input of the network: pixels where the artifact prepares them itself, else normalised numbers.
export function tensor(picture, { shape, input_type, mean, std }) {
  const rgba = pixels(picture, shape);
  const area = shape[0] * shape[1];
  if (input_type === "uint8") {
    const made = new Uint8Array(3 * area);
    for (let i = 0; i < area; i += 1) made.set(rgba.subarray(4 * i, 4 * i + 3), 3 * i);
    return made.buffer;
  }
  let most = 1;
  for (let i = 0; i < area; i += 1) most = Math.max(most, rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]);
  const made = new Float32Array(3 * area);
  for (let c = 0; c < 3; c += 1)
    for (let i = 0; i < area; i += 1) made[c * area + i] = (rgba[4 * i + c] / most - mean[c]) / std[c];
  return made.buffer;
}

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

// Start the camera; `picture` is its video, and `stop` ends it.
export async function camera() {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
  const picture = document.createElement("video");
  [picture.muted, picture.playsInline, picture.srcObject] = [true, true, stream];
  await picture.play();
  return { picture, stop: () => stream.getTracks().forEach((track) => track.stop()) };
}
