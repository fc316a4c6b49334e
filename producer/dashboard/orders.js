// The list of recent orders, newest first; a shard that did not answer is named. The list follows the newest orders
// while the reader does not use it: under a pointer, a focus or a scrolled view nothing moves, rows only change
// their states, and a button shows that there are newer ones. At most KEPT rows are in the page.
//
// The server reports how far each order has come. The feed reports notifications earlier and with details, but only those
// made while this page is open, so the page requests the list again until every row is final.

import { $, h, paint, setText, show } from './dom.js';
import { moment } from './format.js';
import * as orderTrail from './order-trail.js';
import { orderRow } from './order-row.js';
import * as shards from './shards.js';

const PAGE = 25;
const KEPT = 200;
const PACE = 1_000; // ms between automatic refreshes
const CROWDED_PACE = 2_000; // while more orders come than anyone can read
const UNSEEN_PACE = 5_000; // and while the list is scrolled out of sight
const OPEN_PACE = 2_000; // ms between refreshes while a row is not final
const NET = 10_000; // ms after which the list is fetched even without a sign of a change
const RIPEN = 3_000; // ms between requests for single orders while the list is held
const AT_ONCE = 4; // of those
const TOUCHED = 3_000; // ms for which a touch counts as reading
const CROWDED = 5_000; // ms after a frame that could not name all its notifications

const scroller = $('orders-scroll');
const list = $('orders-list');
const older = $('orders-older');
const newest = $('orders-newest');
const [pill, words] = $('orders-state').children;

let api;
let feed;
let answered = () => {};
let query = {}; // {}, { user } or { id }
let entries = new Map(); // id → { row, order, shard, notification, fetchedAt }, as shown from top to bottom
let crowdedAt = -Infinity;
let cursor = null;
let missing = [];
let olderLoaded = false;
let loadingOlder = false;
let newer = false;
let failure = null;
let loadedAt = null;
let asked = 0; // the latest request wins
let timer = null;
let last = -Infinity; // when the last refresh began
let inView = true;
let pointer = false;
let touchedUntil = -Infinity;
let held = false;
let seen = ''; // the shards' figures at the last comparison

export function start(context) {
  ({ api, feed } = context);
  list.append(...Array.from({ length: 8 }, () => h('li', { class: 'order blank', 'aria-hidden': 'true' })));
  newest.addEventListener('click', showNewest);
  older.addEventListener('click', loadOlder);
  reading();
  feed.on('frame', notifiedOf);
  feed.on('recent', notifiedOf);
  feed.on('reset', follow);
  context.stats.on(({ value }) => {
    const now = value ? JSON.stringify(value.shards.map(({ up, orders, outbox, receipt_jobs }) => [up, orders, outbox, receipt_jobs])) : '';
    if (now !== seen) follow();
    seen = now;
  });
  api.onReachable((answers) => answers && failure && follow());
  document.addEventListener('visibilitychange', follow);
  shards.onKnown(() => paint(redraw));
  setInterval(follow, NET);
  setInterval(() => !failure && ![...entries.values()].every(isFinal) && follow(), OPEN_PACE);
  setInterval(ripen, RIPEN);
  refresh();
}

/** Shows the orders of `wanted`: all ({}), a user's ({ user }) or one ({ id }); `onAnswer(count, error)` once they are loaded. */
export function find(wanted, onAnswer = () => {}) {
  query = wanted;
  answered = onAnswer;
  olderLoaded = false;
  entries.clear();
  list.replaceChildren();
  show($('orders-empty'), 'Loading…');
  older.hidden = true;
  scroller.scrollTop = 0;
  return refresh({ take: true });
}

/** Shows an order that this page placed: on top at once, with its trail still open. */
export function placed({ order, shard }) {
  if (query.id ? query.id !== order.id : query.user && query.user !== order.user_id) return;
  if (isHeld()) return markNewer();
  asked += 1; // an answer on its way may be from before this order
  const known = entries.get(order.id)?.order; // the list may arrive before the reply
  arrange([{ order: known ?? { ...order, published: 'waiting', notified: 'waiting' }, shard }, ...entries.values()].slice(0, KEPT));
  follow();
}

function notifiedOf({ notifications, count = notifications.length }) {
  const crowded = count > notifications.length;
  if (crowded) crowdedAt = performance.now();
  for (const { order_id } of notifications) {
    const entry = entries.get(order_id);
    if (entry) draw(entry);
  }
  const concerns = crowded || notifications.some(({ order_id, user_id }) => (query.id ? query.id === order_id : !query.user || query.user === user_id));
  if (concerns) follow();
}

/** Refreshes soon, at most once per `PACE`, if the page is visible. */
function follow() {
  if (timer || document.hidden) return;
  timer = setTimeout(() => {
    timer = null;
    if (!document.hidden) refresh();
  }, Math.max(100, last + (inView ? (isCrowded() ? CROWDED_PACE : PACE) : UNSEEN_PACE) - performance.now()));
}

function showNewest() {
  olderLoaded = false;
  scroller.scrollTop = 0;
  return refresh({ take: true });
}

async function refresh({ take = false } = {}) {
  if (loadingOlder && !take) return; // the reader asked for the list that is being loaded
  const mine = ++asked;
  last = performance.now();
  if (take || entries.size === 0) list.setAttribute('aria-busy', 'true');
  try {
    const answer = await ask();
    if (mine !== asked) return;
    failure = null;
    loadedAt = new Date().toISOString();
    if (take || entries.size === 0 || !isHeld()) accept(answer);
    else learnAll(answer);
    settle(answer.orders.length);
  } catch (error) {
    if (mine !== asked) return;
    failure = error;
    if (!(error instanceof api.Problem || error instanceof api.Unreachable)) console.error(error);
    arrange([...entries.values()]);
    settle(entries.size, error);
  }
}

function settle(found, error) {
  list.setAttribute('aria-busy', 'false');
  const onAnswer = answered;
  answered = () => {};
  onAnswer(found, error);
}

/** Fetches the orders of the query; an id without an order may still be the name of a user. */
async function ask() {
  if (!query.id) return api.orders({ limit: PAGE, user: query.user });
  try {
    return { orders: [await api.order(query.id)] };
  } catch (error) {
    if (error.status !== 404) throw error;
    return api.orders({ limit: PAGE, user: query.text });
  }
}

function accept(answer) {
  cursor = answer.next_cursor ?? null;
  missing = answer.unavailable_shards ?? [];
  newer = false;
  olderLoaded = false;
  arrange(answer.orders.map((order) => ({ order })));
}

/** Updates the rows, but not their order, while the list is held. */
function learnAll(answer) {
  missing = [...new Set([...(answer.unavailable_shards ?? []), ...(olderLoaded ? missing : [])])];
  answer.orders.forEach(learn);
  if (answer.orders.some(({ id, created_at }) => !entries.has(id) && created_at >= topTime())) newer = true;
  arrange([...entries.values()]);
}

const isCrowded = () => performance.now() - crowdedAt < CROWDED;
const topTime = () => entries.values().next().value?.order.created_at ?? '';

function learn(order) {
  const entry = entries.get(order.id);
  if (entry) draw(Object.assign(entry, { order: latest(entry.order, order), fetchedAt: performance.now() }));
}

/** Returns `answer`, except that an order that was once known to be notified stays notified. */
function latest(known, answer) {
  return known?.notified === 'notified' ? { ...answer, published: 'published', notified: 'notified' } : answer;
}

/** Returns true if a row's event and notification have reached a final state. */
const isFinal = ({ order, notification }) => Boolean(notification) || order.notified === 'notified' || order.published === 'refused';

/** Requests rows one by one, a few at a time: while the list is held, its request may no longer cover all rows. */
async function ripen() {
  if (!held || document.hidden || failure) return;
  const now = performance.now();
  const isPending = (entry) => entry.order.receipt_status === 'pending' || !isFinal(entry);
  const pending = [...entries.values()].filter((entry) => now - (entry.fetchedAt ?? -Infinity) > OPEN_PACE && isPending(entry));
  pending.sort((one, other) => (one.fetchedAt ?? 0) - (other.fetchedAt ?? 0));
  await Promise.allSettled(pending.slice(0, AT_ONCE).map(async (entry) => {
    entry.fetchedAt = performance.now();
    learn(await api.order(entry.order.id));
  }));
}

async function loadOlder() {
  if (loadingOlder) return;
  const mine = ++asked;
  olderLoaded = true;
  loadingOlder = true; // not `disabled`: that would drop the focus
  setText(older, 'Loading…');
  try {
    const answer = await api.orders({ limit: PAGE, user: query.user, cursor });
    if (mine !== asked) return;
    failure = null;
    cursor = answer.next_cursor ?? null;
    missing = [...new Set([...missing, ...(answer.unavailable_shards ?? [])])];
    const more = answer.orders.filter(({ id }) => !entries.has(id));
    const all = [...entries.values(), ...more.map((order) => ({ order }))];
    const cut = Math.max(0, all.length - KEPT);
    newer ||= cut > 0;
    arrange(all.slice(cut), { keepView: true });
    if (older.hidden) entries.get(more[0]?.id)?.row.button.focus();
  } catch (error) {
    if (mine !== asked) return;
    failure = error;
    drawState();
  } finally {
    loadingOlder = false;
    list.setAttribute('aria-busy', 'false');
    setText(older, 'Load older');
  }
}

/** Makes the list show exactly `wanted`. Rows that stay are not moved, so focus in them stays too. */
function arrange(wanted, { keepView = false } = {}) {
  const before = entries;
  entries = new Map();
  for (const { order, shard } of wanted) {
    if (entries.has(order.id)) continue;
    const known = before.get(order.id);
    entries.set(order.id, { ...known, row: known?.row ?? orderRow(order, open), order: latest(known?.order, order), shard: shard ?? known?.shard });
  }
  const nodes = new Set([...entries.values()].map(({ row }) => row.node));
  const kept = keepView ? [...list.children].find((node) => nodes.has(node)) : null;
  const was = scroller.scrollTop - (kept?.offsetTop ?? 0);
  for (const node of [...list.children]) if (!nodes.has(node)) node.remove();
  let next = list.firstChild;
  for (const node of nodes) {
    if (node === next) next = next.nextSibling;
    else list.insertBefore(node, next);
  }
  if (kept) scroller.scrollTop = kept.offsetTop + was;
  redraw();
  older.hidden = !cursor || entries.size === 0;
  show($('orders-empty'), entries.size === 0 && emptyText());
  drawState();
}

function redraw() {
  entries.forEach(draw);
}

function draw(entry) {
  const { row, order, shard } = entry;
  entry.notification ??= feed.notificationOf(order.id); // the feed forgets it before the row does
  row.update({ order, shard, notification: entry.notification });
}

function open(id) {
  orderTrail.open(id, entries.get(id));
}

/** Returns true while the reader uses the list, so that no row may move. */
function isHeld() {
  return olderLoaded || scroller.scrollTop > 0 || pointer || performance.now() < touchedUntil || Boolean(scroller.querySelector(':focus-visible')) || orderTrail.isOpen();
}

function reading() {
  const updateHold = () => {
    const was = held;
    held = entries.size > 0 && isHeld();
    if (was === held) return;
    paint(drawState);
    if (!held && newer) follow();
  };
  const touch = () => {
    touchedUntil = performance.now() + TOUCHED;
    setTimeout(updateHold, TOUCHED + 10);
    updateHold();
  };
  new IntersectionObserver(([{ isIntersecting }]) => {
    inView = isIntersecting;
    if (!inView) return;
    clearTimeout(timer);
    timer = null;
    follow();
  }).observe(scroller);
  scroller.addEventListener('pointerenter', ({ pointerType }) => {
    pointer = pointerType === 'mouse';
    updateHold();
  });
  scroller.addEventListener('pointerleave', () => {
    pointer = false;
    updateHold();
  });
  scroller.addEventListener('pointerdown', ({ pointerType }) => pointerType !== 'mouse' && touch());
  scroller.addEventListener('scroll', updateHold, { passive: true });
  scroller.addEventListener('focusin', updateHold);
  scroller.addEventListener('focusout', () => setTimeout(updateHold));
  $('order-trail').addEventListener('close', () => setTimeout(updateHold));
}

function markNewer() {
  newer = true;
  paint(drawState);
}

/** The line above the list: whether it is live, held, incomplete or old, in words. */
function drawState() {
  held = entries.size > 0 && isHeld();
  const silent = missing.map(shards.titleOf).join(' and ');
  const [state, name, text] = failure && entries.size > 0
    ? ['bad', 'Stale', `As of ${moment(loadedAt)}. ${failure.message}`]
    : failure
      ? ['bad', 'Not loaded', failure.message]
      : silent
        ? ['waiting', 'Incomplete', `No answer from ${silent}: orders there are missing here.`]
        : held && !query.id
          ? ['unseen', 'Held', newer ? 'Newer orders have arrived; nothing moves while you read.' : 'Nothing moves while you read.']
          : ['good', 'Live', query.id ? 'The order with this id.' : query.user ? 'Newest first, of this user only.' : 'Newest first.'];
  pill.dataset.state = state;
  setText(pill, name);
  setText(words, text);
  setText(newest, newer ? 'Show newest' : 'Refresh');
  newest.classList.toggle('primary', newer);
}

function emptyText() {
  if (failure) return failure.status ? 'Nothing could be loaded.' : 'Nothing to show until the API answers.';
  if (missing.length > 0) return 'No orders on the shards that answered.';
  if (query.id) return 'No order has this id, and no user has this name.';
  if (query.user) return 'This user has no orders. Enter the whole name, with its capitals.';
  return 'No orders yet. Place the first one: it appears here at once.';
}
