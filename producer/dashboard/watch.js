// Orders whose receipt is still to come: each is asked for again, soon at first and then ever more rarely,
// a few at a time, and not for ever. A hidden page asks nothing.

import * as api from './api.js';

const TRIES = 12; // with the backoff of api.js: about three minutes
const AT_ONCE = 4;

const watched = new Map(); // id → {tries, due}
let learned = () => {};
let timer = null;
let asking = 0;

/** `onOrder(order)` is told what each question found. */
export function start(onOrder) {
  learned = onOrder;
  document.addEventListener('visibilitychange', plan);
}

export function add(id) {
  if (!watched.has(id)) watched.set(id, { tries: 0, due: Date.now() + api.backoff(0) });
  plan();
}

/** Something happened to this order: if it is watched, ask now and begin counting again. */
export function hurry(id) {
  if (watched.has(id)) watched.set(id, { tries: 0, due: Date.now() });
  plan();
}

/** Forgets every order that is not in `shown`. */
export function only(shown) {
  for (const id of watched.keys()) if (!shown.has(id)) watched.delete(id);
}

function plan() {
  clearTimeout(timer);
  if (document.hidden || asking >= AT_ONCE) return;
  const next = Math.min(...[...watched.values()].filter(({ tries }) => tries < TRIES).map(({ due }) => due));
  if (Number.isFinite(next)) timer = setTimeout(askDue, Math.max(0, next - Date.now()));
}

function askDue() {
  for (const [id, state] of watched) {
    if (asking < AT_ONCE && state.tries < TRIES && state.due <= Date.now()) ask(id, state);
  }
  plan();
}

async function ask(id, state) {
  state.due = Infinity; // not again while this one is under way
  asking += 1;
  try {
    const order = await api.order(id);
    if (order.receipt_status !== 'pending') watched.delete(id);
    learned(order);
  } catch {
    // No answer is an answer for later; the connection line already says that something is wrong.
  }
  asking -= 1;
  state.tries += 1;
  state.due = Date.now() + api.backoff(state.tries);
  plan();
}
