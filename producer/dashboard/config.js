// The features and limits of this installation. Until they are known the page uses the API's documented limits.

import { backoff, config } from './api.js';
import { Listeners } from './listeners.js';

const listeners = new Listeners();
let known = null;
let current = {
  controls_url: null,
  trace_url_template: null,
  dead_letter_replay: false,
  limits: { user_id: 100, product_name: 255, quantity: 2_147_483_647, price_cents: 9_999_999_999, total_cents: 1_000_000_000_000_000 },
};

export const value = () => current;

/** Calls `listener(value)` as soon as the value is known. */
export function on(listener) {
  if (known) listener(known);
  return listeners.add(listener);
}

export async function start(tries = 0) {
  try {
    const answer = await config();
    known = current = { ...current, ...answer, limits: { ...current.limits, ...answer.limits } };
    listeners.notify(known);
  } catch {
    setTimeout(start, backoff(tries), tries + 1);
  }
}
