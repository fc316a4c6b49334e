// The live feed of notifications, kept open for as long as the page is. A broken stream the browser mends itself;
// a refused one (503, or a proxy's page) is tried again here, and what may have been missed meanwhile is a reset.

import { backoff } from './api.js';
import { $, h } from './dom.js';
import { count, latency, moment, utc } from './format.js';

const SHOWN = 20;

const list = $('feed');
const recent = new Map(); // order id → event id, for telling a replay from news
const REMEMBERED = 1_000;

let source = null;
let handlers;
let tries = 0;
let timer = null;
let fresh = []; // for the next frame, oldest first
let seen = 0;

/** `onNotification(n)` once per notification, `onReset()` after a gap, `onState('waiting' | 'live')` at each change. */
export function start(given) {
  handlers = given;
  connect();
}

/** Do not wait for the backoff: there is reason to believe the API is back. */
export function tryNow() {
  if (source === null) connect();
}

function connect() {
  clearTimeout(timer);
  source = new EventSource('/api/feed');
  source.addEventListener('open', () => {
    if (tries > 0) handlers.onReset();
    tries = 0;
    handlers.onState('live');
  });
  source.addEventListener('error', () => {
    handlers.onState('waiting');
    if (source.readyState !== EventSource.CLOSED) return;
    source = null;
    timer = setTimeout(connect, backoff(tries));
    tries += 1;
  });
  source.addEventListener('reset', () => handlers.onReset());
  source.addEventListener('notification', (event) => receive(JSON.parse(event.data)));
}

function receive(notification) {
  const { order_id, event_id } = notification;
  if (recent.get(order_id) === event_id) return;
  recent.set(order_id, event_id);
  if (recent.size > REMEMBERED) recent.delete(recent.keys().next().value);
  seen += 1;
  if (fresh.length === 0) requestAnimationFrame(paint);
  fresh.push(notification);
  if (fresh.length > SHOWN) fresh.shift();
  handlers.onNotification(notification);
}

/** Once per frame, however fast they come. */
function paint() {
  $('seen').textContent = count(seen);
  $('feed-empty').hidden = true;
  list.prepend(...fresh.map(item).reverse());
  fresh = [];
  while (list.children.length > SHOWN) list.lastChild.remove();
}

function item(notification) {
  const { message, notified_at, partition, offset } = notification;
  return h(
    'li', {},
    h('p', { dir: 'auto' }, message),
    h('p', { class: 'quiet' },
      h('time', { datetime: notified_at, title: utc(notified_at) }, moment(notified_at)),
      ` · ${latency(notification)} after acceptance · partition ${partition}, offset ${offset}`),
  );
}
