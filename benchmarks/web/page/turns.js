// Turns that nothing disturbed, and remarks on what else changes the times.

import { battery, disturbances, frameStep } from "./device.js";

// A turn that was disturbed is timed again, at most so often.
const TRIES = 3;
// Shares of the usual time: a clock with larger steps is remarked on, or its times are refused.
const COARSE = 0.02;
const USELESS = 0.2;
// Milliseconds between two pictures. Browsers draw 60 a second or more; where power is saved, some draw 30.
const SLOW_FRAMES = 25;
const LOW_BATTERY = 0.2;

export class Refused extends Error {}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

async function visible(say) {
  while (document.visibilityState !== "visible") {
    say("Waiting: bring this page to the front.");
    await pause(250);
  }
}

// Do a turn, again where the page was hidden or frozen meanwhile; add what happened to the notes of its answer.
export async function undisturbed(turn, say) {
  const notes = new Set();
  for (let tries = 0; tries < TRIES; tries += 1) {
    await visible(say);
    const ended = disturbances();
    const found = await turn();
    const why = ended();
    if (!why || found.reply.error) {
      found.reply.notes = [...(found.reply.notes ?? []), ...notes, ...(await power())];
      return found;
    }
    notes.add(`timed again: the page was ${why}`);
  }
  throw new Refused(`the page was hidden or frozen during ${TRIES} turns; keep it in front`);
}

async function power() {
  const { charging, level } = await battery();
  return charging === false && level <= LOW_BATTERY
    ? ["the battery was nearly empty and not charging: the system may have saved power"]
    : [];
}

// Remarks after the warm-up; a clock that is too coarse for these times is refused.
export async function remarks(clock, times) {
  const notes = [];
  const usual = median(times) / 1e6;
  const share = clock / usual;
  const told = `the browser's clock has steps of ${Number(clock.toPrecision(2))} ms`;
  if (share > USELESS) throw new Refused(`${told}, too coarse for times of ${usual.toPrecision(2)} ms`);
  if (share > COARSE) notes.push(`${told}, ${(100 * share).toFixed(0)} % of the usual time`);
  if ((await frameStep()) > SLOW_FRAMES) notes.push("the browser draws at most 30 pictures a second: a battery saver may be on");
  return notes;
}
