// The figures of `GET /api/stats`, fetched each second while the page is visible. Without an answer the last figures stay,
// and are marked as stale.

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
  listeners.notify(known);
  timer = setTimeout(poll, Math.max(100, PERIOD - (Date.now() - asked)));
}

/** Marks the figures as stale: a missing answer causes no event. */
function age() {
  if (document.hidden || !isStale()) return;
  known = { ...known, stale: true };
  listeners.notify(known);
}

const isStale = () => Date.now() - (known.at ?? begun) > STALE;
