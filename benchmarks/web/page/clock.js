// The step of the clock in milliseconds. Browsers make clocks coarse, in a page as in a Web Worker.

export function clockStep() {
  let least = Infinity;
  for (let i = 0, last = performance.now(); i < 20; ) {
    const time = performance.now();
    if (time > last) {
      least = Math.min(least, time - last);
      last = time;
      i += 1;
    }
  }
  return least;
}
