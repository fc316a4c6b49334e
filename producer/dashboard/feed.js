// The live feed of notifications, kept open for as long as the page is. A broken stream the browser mends itself;
// a refused one (503) is tried again here. Each stream begins with the latest notifications; what came before those
// may have been missed, so every new stream after a break counts as a gap.

import { backoff } from './api.js';
import { $, h, say } from './dom.js';
import { count, latency, moment, utc } from './format.js';

const SHOWN = 20;
const REMEMBERED = 1_000;

const list = $('feed');
const known = new Map(); // order id → its notification, the latest ones
let handlers;
let source = null;
let broken = false;
let tries = 0;
let timer;
let fresh = []; // for the next frame, oldest first
let seen = 0;

/** `onNotification(n)` once for each, `onReset()` after a gap, `onLive(whether)`. */
export function start(given) {
  handlers = given;
  connect();
}

export const notificationOf = (orderId) => known.get(orderId);

/** There is reason to believe that the API is back: do not wait for the backoff. */
export function tryNow() {
  if (!source) connect();
}

function connect() {
  clearTimeout(timer);
  source = new EventSource('/api/feed');
  source.addEventListener('open', () => {
    if (broken) handlers.onReset();
    broken = false;
    tries = 0;
    handlers.onLive(true);
  });
  source.addEventListener('error', () => {
    broken = true;
    handlers.onLive(false);
    if (source.readyState !== EventSource.CLOSED) return;
    source = null;
    timer = setTimeout(connect, backoff(tries++));
  });
  source.addEventListener('reset', () => handlers.onReset());
  source.addEventListener('notification', (event) => receive(JSON.parse(event.data)));
}

function receive(notification) {
  const { order_id, event_id } = notification;
  if (known.get(order_id)?.event_id === event_id) return; // shown before the break
  known.set(order_id, notification);
  if (known.size > REMEMBERED) known.delete(known.keys().next().value);
  seen += 1;
  if (fresh.length === 0) requestAnimationFrame(paint);
  fresh = [...fresh, notification].slice(-SHOWN);
  handlers.onNotification(notification);
}

/** Once per frame, however fast they come. */
function paint() {
  say($('seen'), count(seen));
  $('feed-empty').hidden = true;
  list.prepend(...fresh.map(item).reverse());
  fresh = [];
  while (list.children.length > SHOWN) list.lastChild.remove();
}

function item(notification) {
  const { message, notified_at, partition, offset } = notification;
  const when = h('time', { datetime: notified_at, title: utc(notified_at) }, moment(notified_at));
  const where = ` · after ${latency(notification)} · partition ${partition}, offset ${offset}`;
  return h('div', {}, h('p', { dir: 'auto' }, message), h('p', { class: 'quiet' }, when, where));
}
