// The list of recent orders, newest first; a shard that did not answer is named. While only the newest page is on
// show it follows by itself; once older orders are loaded it waits to be asked, so that nothing moves under the reader.

import * as api from './api.js';
import { $, h, show } from './dom.js';
import * as feed from './feed.js';
import { orderRow } from './order-row.js';
import * as receipt from './receipt.js';
import { titleOf } from './shards.js';
import * as watch from './watch.js';

const PAGE = 25;
const MOST = 500; // what the API gives in one answer
const PACE = 1_500; // ms between refreshes that nobody clicked for

const list = $('orders');
const older = $('older');
const filter = $('filter-user');

let entries = new Map(); // id → {row, order, shard}, as shown from top to bottom
const awaited = new Set(); // ids placed here whose notification is still to come
let cursor = null;
let olderLoaded = false;
let missing = [];
let failed = false;
let asked = 0; // the latest request wins
let loading = false;
let following = null;

export function start() {
  list.append(...Array.from({ length: 6 }, () => h('li', { class: 'order blank', 'aria-hidden': 'true' })));
  $('refresh').addEventListener('click', refresh);
  older.addEventListener('click', loadOlder);
  $('filter').addEventListener('submit', (event) => event.preventDefault());
  let typing;
  filter.addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      olderLoaded = false;
      refresh();
    }, 350);
  });
  document.addEventListener('visibilitychange', follow);
  refresh();
}

/** An order this page placed: on top at once, with its journey before it. */
export function placed({ order, shard }) {
  if (!feed.notificationOf(order.id)) awaited.add(order.id);
  if (!matches(order)) return;
  arrange([{ order, shard }, ...entries.values()]);
  if (loading) refresh(); // the answer on its way may be from before this order
}

/** The feed told of an order: mark it, or learn from it that there are new ones. */
export function notified({ order_id, user_id }) {
  awaited.delete(order_id);
  const entry = entries.get(order_id);
  if (entry) draw(entry);
  else if (matches({ user_id })) follow();
}

/** The feed has a gap: what was awaited may have passed unseen. Says so, and asks again for what is shown. */
export function reset() {
  awaited.clear();
  redraw();
  refresh();
}

/** Refreshes soon, at most once per `PACE`, if the newest page is all that is shown and someone looks. */
export function follow() {
  if (following || olderLoaded || document.hidden) return;
  following = setTimeout(() => {
    following = null;
    if (!olderLoaded) refresh();
  }, PACE);
}

/** Whether the last answer came, and from every shard. */
export const complete = () => !failed && missing.length === 0;

export function redraw() {
  entries.forEach(draw);
}

export function refresh() {
  const limit = olderLoaded ? Math.min(MOST, Math.ceil(entries.size / PAGE) * PAGE) : PAGE;
  return load({ limit }, [], []);
}

function loadOlder() {
  olderLoaded = true;
  return load({ limit: PAGE, cursor }, [...entries.values()], missing);
}

/** Asks for a page and shows it below the entries `above`, of which the shards `missed` were missing already. */
async function load(query, above, missed) {
  const mine = ++asked;
  loading = true;
  list.setAttribute('aria-busy', 'true');
  try {
    const answer = await api.orders({ ...query, user: filter.value });
    if (mine !== asked) return;
    cursor = answer.next_cursor;
    missing = [...new Set([...missed, ...(answer.unavailable_shards ?? [])])];
    failed = false;
    show($('orders-error'), null);
    arrange([...above, ...answer.orders.map((order) => ({ order }))]);
  } catch (error) {
    if (mine !== asked) return;
    failed = true;
    show($('orders-error'), `The list could not be loaded. ${error.message}`);
    arrange([...entries.values()]);
  }
  loading = false;
  list.setAttribute('aria-busy', 'false');
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
  redraw();
  older.hidden = !cursor;
  const silent = missing.map(titleOf).join(' and ');
  show($('missing-shards'), silent && `No answer from ${silent}: orders stored there are not in this list until that changes.`);
  show($('orders-empty'), entries.size === 0 && emptyText());
}

function draw({ row, order, shard }) {
  row.update({ order, shard, notification: feed.notificationOf(order.id), awaited: awaited.has(order.id) });
  if (order.receipt_status === 'pending') watch.watch(order.id, learn);
}

function learn(order) {
  const entry = entries.get(order.id);
  if (entry) draw(Object.assign(entry, { order }));
}

const matches = ({ user_id }) => filter.value === '' || filter.value === user_id;

function emptyText() {
  if (failed) return 'Nothing to show until the API answers.';
  if (missing.length > 0) return 'No orders on the shards that answered.';
  if (filter.value) return `No orders of “${filter.value}”. The filter takes the whole user name.`;
  return 'No orders yet. Place the first one: it appears here at once.';
}
