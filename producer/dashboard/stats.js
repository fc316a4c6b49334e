// The figures of `GET /api/stats`, asked for each second while someone looks. What was known stays known when an
// answer fails to come; it only grows stale, and says so.

import * as api from './api.js';
import { Listeners } from './listeners.js';

const PERIOD = 1_000; // ms
const STALE = 5_000; // ms

const listeners = new Listeners();
const begun = Date.now();
let known = { value: null, at: null, stale: false, error: null };
let timer;
let asking = false;

/** `listener({value, at, stale, error})`: at once, after each answer or failure, and each second while stale. */
export function on(listener) {
  listener(known);
  return listeners.add(listener);
}

export const latest = () => known;

export function start() {
  document.addEventListener('visibilitychange', poll);
  setInterval(age, PERIOD);
  poll();
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  const asked = Date.now();
  try {
    const value = await api.stats();
    known = { value, at: Date.now(), stale: false, error: null };
  } catch (error) {
    known = { ...known, stale: isStale(), error };
  }
  asking = false;
  listeners.tell(known);
  timer = setTimeout(poll, Math.max(100, PERIOD - (Date.now() - asked)));
}

/** An answer that does not come makes no event, so the clock has to. */
function age() {
  if (document.hidden || !isStale()) return;
  known = { ...known, stale: true };
  listeners.tell(known);
}

const isStale = () => Date.now() - (known.at ?? begun) > STALE;
