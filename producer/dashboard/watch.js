// Orders whose receipt is still to come: each is asked for again, soon at first, then ever more rarely, and not for ever.

import { backoff, order } from './api.js';

const TRIES = 12; // with the backoff of api.js: about three minutes

const watched = new Map(); // id → its timer; null once given up

/** Asks for the order until its receipt is no longer pending; `onOrder(order)` is told each answer. */
export function watch(id, onOrder) {
  if (!watched.has(id)) ask(id, onOrder, 0, 200);
}

/** Forgets every order that is not in `shown`. */
export function only(shown) {
  for (const [id, timer] of watched) {
    if (shown.has(id)) continue;
    clearTimeout(timer);
    watched.delete(id);
  }
}

function ask(id, onOrder, tries, delay) {
  const timer = setTimeout(async () => {
    const found = document.hidden ? null : await order(id).catch(() => null); // silence is the connection line's business
    if (watched.get(id) !== timer) return;
    if (found) onOrder(found);
    if (found && found.receipt_status !== 'pending') watched.delete(id);
    else if (tries < TRIES) ask(id, onOrder, tries + 1, backoff(tries));
    else watched.set(id, null);
  }, delay);
  watched.set(id, timer);
}
