// The list of recent orders: what the API says, newest first, plus what this page itself just placed; a shard that
// did not answer is named. While only the newest page is on show it follows by itself; once older orders are loaded
// it only offers to, so that nothing moves under the reader.

import * as api from './api.js';
import { $, h, say, show } from './dom.js';
import { orderRow } from './order-row.js';
import * as receipt from './receipt.js';
import { named, range } from './shards.js';
import * as watch from './watch.js';

const PAGE = 25;
const MOST = 500; // what the API gives in one answer
const REMEMBERED = 1_000; // notifications kept for orders that are not in the list (yet)
const PACE = 1_500; // ms between refreshes that the feed asked for

const list = $('orders');
const older = $('older');
const refreshButton = $('refresh');
const userFilter = $('filter-user');

let entries = new Map(); // id → {row, order, shard}, as shown from top to bottom
const notifications = new Map(); // order id → its notification
const awaited = new Set(); // ids placed here whose notification is still to come
const unlisted = new Map(); // id → {order, shard}: placed here, not in any answer yet
let user = '';
let cursor = null;
let missing = [];
let olderLoaded = false;
let failed = false;
let asked = 0; // the latest request wins
let following = null;

export function start() {
  list.append(...Array.from({ length: 6 }, () => h('li', { class: 'order blank', 'aria-hidden': 'true' })));
  watch.start(learn);
  refreshButton.addEventListener('click', refresh);
  older.addEventListener('click', loadOlder);
  $('filter').addEventListener('submit', (event) => {
    event.preventDefault();
    filter();
  });
  let typing;
  userFilter.addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(filter, 350);
  });
  document.addEventListener('visibilitychange', () => {
    if (refreshButton.classList.contains('fresh')) follow();
  });
  refresh();
}

/** An order this page placed: on top at once, with its journey before it. */
export function placed({ order, shard }) {
  if (!notifications.has(order.id)) awaited.add(order.id);
  if (!entries.has(order.id)) unlisted.set(order.id, { order, shard });
  if (user === '' || user === order.user_id) arrange([{ order, shard }, ...entries.values()]);
}

/** The feed told of an order: mark it, or learn from it that there are new ones. */
export function notified(notification) {
  const id = notification.order_id;
  notifications.set(id, notification);
  if (notifications.size > REMEMBERED) notifications.delete(notifications.keys().next().value);
  awaited.delete(id);
  const entry = entries.get(id);
  if (entry) {
    draw(entry);
    watch.hurry(id);
  } else if (user === '' || user === notification.user_id) {
    markFresh(true);
    follow();
  }
}

export const notificationOf = (id) => notifications.get(id);

/** The feed has a gap: what was awaited may have passed unseen. Says so, and asks again for what is shown. */
export function reset() {
  awaited.clear();
  entries.forEach(draw);
  refresh();
}

/** Asks for the newest page again soon, at most once per `PACE`, if that is all that is shown and someone looks. */
export function follow() {
  if (following || olderLoaded || document.hidden) return;
  following = setTimeout(() => {
    following = null;
    if (!olderLoaded) refresh();
  }, PACE);
}

/** A shard that was down is up: its orders belong back in the list. */
export function shardBack() {
  if (failed || missing.length > 0) refresh();
}

/** The shard map is known now, and with it where each order is stored. */
export function redraw() {
  entries.forEach(draw);
}

export function refresh() {
  const limit = olderLoaded ? Math.min(MOST, Math.ceil(entries.size / PAGE) * PAGE) : PAGE;
  return load({ limit, user }, (answer) => {
    markFresh(false);
    missing = answer.unavailable_shards ?? [];
    arrange([...stillUnlisted(answer.orders), ...answer.orders.map((order) => ({ order }))]);
  });
}

function loadOlder() {
  olderLoaded = true;
  return load({ limit: PAGE, user, cursor }, (answer) => {
    missing = [...new Set([...missing, ...(answer.unavailable_shards ?? [])])];
    arrange([...entries.values(), ...answer.orders.map((order) => ({ order }))]);
  });
}

function filter() {
  if (userFilter.value === user) return;
  user = userFilter.value;
  olderLoaded = false;
  refresh();
}

async function load(query, accept) {
  const mine = ++asked;
  list.setAttribute('aria-busy', 'true');
  try {
    const answer = await api.orders(query);
    if (mine !== asked) return;
    failed = false;
    cursor = answer.next_cursor ?? null;
    accept(answer);
    show($('orders-error'), null);
  } catch (error) {
    if (mine !== asked) return;
    failed = true;
    show($('orders-error'), `The list could not be loaded. ${error.message}`);
    arrange([...entries.values()]);
  }
  list.setAttribute('aria-busy', 'false');
}

/** An answer may have been on its way before an order was placed here: such an order is newer than all in it. */
function stillUnlisted(orders) {
  orders.forEach(({ id }) => unlisted.delete(id));
  const newest = orders.length > 0 ? Date.parse(orders[0].created_at) : 0;
  return [...unlisted.values()]
    .reverse()
    .filter(({ order }) => (user === '' || user === order.user_id) && Date.parse(order.created_at) >= newest);
}

/** Makes the list show exactly `wanted`. Rows that stay are not moved, so focus in them stays too. */
function arrange(wanted) {
  const before = entries;
  entries = new Map();
  for (const { order, shard } of wanted) {
    if (entries.has(order.id)) continue;
    const known = before.get(order.id);
    entries.set(order.id, { row: known?.row ?? orderRow(order, receipt.open), order, shard: shard ?? known?.shard });
  }
  const nodes = new Set([...entries.values()].map(({ row }) => row.node));
  [...list.children].filter((node) => !nodes.has(node)).forEach((node) => node.remove());
  let next = list.firstChild;
  for (const node of nodes) {
    if (node === next) next = next.nextSibling;
    else list.insertBefore(node, next);
  }
  watch.only(entries);
  entries.forEach(draw);
  showAround();
}

function draw({ row, order, shard }) {
  row.update({ order, shard, notification: notifications.get(order.id), awaited: awaited.has(order.id) });
  if (order.receipt_status === 'pending') watch.add(order.id);
}

function learn(order) {
  const entry = entries.get(order.id);
  if (!entry) return;
  entry.order = order;
  draw(entry);
}

function showAround() {
  const names = missing.map((name) => (named(name) ? `${name} (${range(named(name).users)})` : name)).join(' and ');
  const one = missing.length === 1;
  show(
    $('missing-shards'),
    missing.length > 0 && `${names} ${one ? 'does' : 'do'} not answer: ${one ? 'its' : 'their'} orders are missing from this list. They are not lost.`,
  );
  show($('orders-empty'), entries.size === 0 && emptyText());
  older.hidden = !cursor || entries.size === 0;
}

function emptyText() {
  if (failed) return 'Nothing to show until the API answers.';
  if (missing.length > 0) return 'No orders on the shards that answered.';
  return user === '' ? 'No orders yet. Place the first one: it appears here at once.' : `No orders of “${user}”. The filter takes the whole user name.`;
}

function markFresh(fresh) {
  refreshButton.classList.toggle('fresh', fresh && olderLoaded);
  say(refreshButton, fresh && olderLoaded ? 'Show new' : 'Refresh');
}
