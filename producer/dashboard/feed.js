// The live feed of notifications, open for as long as the page is. The browser reopens a broken stream, which resumes where
// it was (`Last-Event-ID`); a refused stream (503) is retried here. Missed notifications are reported: `lagged` and `reset`
// come from the server, and a total that does not add up becomes a `reset` here.

import { backoff } from './api.js';
import { Listeners } from './listeners.js';

const REMEMBERED = 2_000;

const listeners = Object.fromEntries(['hello', 'recent', 'frame', 'lagged', 'reset', 'state'].map((type) => [type, new Listeners()]));
const known = new Map(); // order id → its notification, the latest ones
let source = null;
let present = 'connecting'; // 'connecting' | 'live' | 'reconnecting' | 'closed' (refused; tried again later)
let tries = 0;
let timer;
let restarted = false; // this stream replaces one of ours, without its Last-Event-ID
let total = null; // notifications up to here, as the server counts; null = not to be compared

/** Calls `listener(data)` for each event of that type; of `state` also at once. Returns a function that stops it. */
export function on(type, listener) {
  if (type === 'state') listener(present);
  return listeners[type].add(listener);
}

export const notificationOf = (orderId) => known.get(orderId);

/** Reopens a refused stream without the backoff, since the API seems to be back. */
export function tryNow() {
  if (source?.readyState === EventSource.CLOSED) start(); // one that still reconnects knows where it was
}

export function start() {
  clearTimeout(timer);
  restarted = source !== null;
  source = new EventSource('/api/feed');
  source.addEventListener('open', () => {
    tries = 0;
    become('live');
  });
  source.addEventListener('error', ({ target }) => {
    if (target !== source) return;
    const closed = source.readyState === EventSource.CLOSED;
    become(closed ? 'closed' : 'reconnecting');
    if (closed) timer = setTimeout(start, backoff(tries++));
  });
  listen('hello', ({ resumed }) => {
    if (!resumed) total = null;
    if (restarted) listeners.reset.notify({ reason: 'new-stream' });
    restarted = false;
  });
  listen('recent', ({ notifications }) => notifications.forEach(remember));
  listen('frame', (frame) => {
    if (total !== null && frame.total - frame.count !== total) listeners.reset.notify({ reason: 'gap' });
    total = frame.total;
    frame.arrived = Date.now();
    frame.notifications.forEach(remember);
  });
  listen('lagged', () => {
    total = null;
  });
  listen('reset', () => {
    total = null;
  });
}

function listen(type, first) {
  const mine = source;
  source.addEventListener(type, (event) => {
    if (mine !== source) return;
    const data = JSON.parse(event.data);
    first(data);
    listeners[type].notify(data);
  });
}

function remember(notification) {
  known.delete(notification.order_id);
  known.set(notification.order_id, notification);
  if (known.size > REMEMBERED) known.delete(known.keys().next().value);
}

function become(next) {
  if (next === present) return;
  present = next;
  listeners.state.notify(present);
}
