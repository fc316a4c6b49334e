// Placing an order. One intent is one idempotency key: it stays with the same order through every retry until the
// API gives a definite answer, so neither a double click nor an unknown outcome can place it twice.

import { $, h, say } from './dom.js';
import { latency } from './format.js';
import { formatCents, parsePrice } from './money.js';
import { parseOrder, parseQuantity } from './new-order.js';
import { named } from './names.js';
import * as orderPath from './order-path.js';
import { placed } from './orders.js';
import * as shards from './shards.js';

const REST = 700; // ms after an answer in which a second click is still the same click
const REMEMBERED = 20; // orders of unknown outcome whose key is kept while other orders are placed
const FIELDS = ['user_id', 'product_name', 'quantity', 'price'];
const SAFE = 'Retrying is safe: with the same key it cannot be placed twice.';

const form = $('place-form');
const button = form.querySelector('button');
const outcome = $('outcome');
const path = $('outcome-path');

let api;
let feed;
let stats;
let config;
const keys = new Map(); // body of an order that is not answered for good → { key, unknown: it may be stored }
const left = new Set(); // fields the reader has filled in and left
let refusals = {}; // field → the API's own sentence, until the field is edited
let busy = false;
let resting = false;
let again = null; // { body, at }: this order can be sent again, from this moment on
let awaited = null; // id of the order whose notification the outcome line still awaits

export function start(context) {
  ({ api, feed, stats, config } = context);
  form.addEventListener('submit', submit);
  form.addEventListener('input', edited);
  form.addEventListener('focusout', ({ target }) => {
    if (target.value) left.add(target.name);
    hints();
  });
  feed.on('frame', tellNotified);
  feed.on('recent', tellNotified);
  shards.onKnown(hints);
  config.on(hints);
  stats.on(hints);
  button.disabled = false;
  hints();
}

function submit(event) {
  event.preventDefault();
  if (busy || resting) return;
  const { errors, order } = parse();
  if (!order) {
    FIELDS.forEach((name) => left.add(name));
    return complain(Object.keys(errors));
  }
  if (again?.body === order.body && again.at > Date.now()) return; // Retry-After; the button counts down
  send(order);
}

function edited({ target }) {
  delete refusals[target.name];
  for (const [body, { unknown }] of keys) if (!unknown) keys.delete(body);
  hints();
  label();
}

/** Under each field: what is wrong with it, or what is known already while one types. */
function hints() {
  const { user_id, quantity, price } = values();
  const { errors } = parse();
  const known = { user_id: whereTo(user_id), total: totalOf(quantity, price) };
  for (const name of [...FIELDS, 'total']) {
    const { error, unfinished } = errors[name] ?? {};
    const shown = refusals[name] ?? (left.has(name) || !unfinished ? error : null);
    const line = $(`${name}-note`);
    line.classList.toggle('error', Boolean(shown));
    const field = form.elements[name === 'total' ? 'quantity' : name];
    field.setAttribute('aria-invalid', Boolean(shown) || (name === 'quantity' && Boolean(errors.total)));
    say(line, shown ?? known[name] ?? '');
  }
}

function whereTo(user) {
  const shard = user && shards.shardOf(user);
  if (!shard) return 'The first letter decides the shard.';
  const { value, stale } = stats.latest() ?? {};
  const down = !stale && value?.shards.find(({ name }) => name === shard.name)?.up === false;
  return `Goes to ${shards.titleOf(shard.name)}${down ? ', which is down now' : ''}.`;
}

function totalOf(quantity, price) {
  const pieces = parseQuantity(quantity, config.value().limits).value;
  const { cents } = parsePrice(price, BigInt(config.value().limits.price_cents));
  return pieces && cents ? `Total ${formatCents(pieces * cents)}` : 'Total –';
}

async function send(order) {
  const open = keys.get(order.body) ?? { key: api.newKey(), unknown: false };
  keys.set(order.body, open);
  if (keys.size > REMEMBERED) keys.delete(keys.keys().next().value);
  busy = true;
  again = null;
  label();
  try {
    const answer = await api.place(order.body, open.key);
    keys.delete(order.body);
    left.clear();
    tell('good', `Stored on ${shards.titleOf(answer.shard)}.`, order, '.');
    offerPath(answer.order.id, 'See its path', answer);
    awaited = answer.order.id;
    notified(feed.notificationOf(awaited)); // the feed may be faster than the reply
    placed(answer);
    rest();
  } catch (error) {
    refused(order, open, error);
  } finally {
    busy = false;
    label();
    hints();
  }
}

function rest() {
  resting = true;
  setTimeout(() => {
    resting = false;
    label();
  }, REST);
}

/** Says exactly what is known, and offers the same order with the same key again where that can help. */
function refused(order, open, error) {
  offerPath(null);
  if (!(error instanceof api.Problem || error instanceof api.Unreachable)) {
    tell('bad', 'This page failed.', order, ` may or may not be stored. ${SAFE}`);
    console.error(error);
  } else if (error instanceof api.Unreachable) {
    open.unknown = true;
    tell('open', 'No answer.', order, ` was sent, but the API did not reply: it may or may not be stored. ${SAFE}`);
  } else if (error.kind === 'not-accepted' || error.kind === 'refused') {
    const earlier = open.unknown ? ` The try before this one may still have stored it. ${SAFE}` : '';
    tell(open.unknown ? 'open' : 'bad', open.unknown ? 'Not accepted this time.' : 'Not stored.', order, ` was not accepted. ${error.message}${earlier}`);
  } else if (error.kind === 'outcome-unknown') {
    open.unknown = true;
    tell('open', 'Outcome unknown.', order, ` was handed to its shard, which has not answered in time: it may still appear. ${SAFE}`);
    if (error.orderId) offerPath(error.orderId, 'Look for it');
  } else if (error.status >= 500) {
    open.unknown = true;
    tell('open', 'The API failed.', order, ` may or may not be stored. ${error.message} ${SAFE}`);
  } else {
    return invalid(order, error);
  }
  again = { body: order.body, at: Date.now() + 1_000 * (error.retryAfter ?? 0) };
}

function invalid(order, error) {
  keys.delete(order.body);
  const [here, elsewhere] = [true, false].map((ours) => error.fields.filter(({ field }) => FIELDS.includes(field) === ours));
  refusals = Object.fromEntries(here.map(({ field, detail }) => [field, detail]));
  const next = error.kind === 'idempotency-key-reused' ? ['Placing it again uses a new one.'] : [];
  tell('bad', 'Not stored.', order, `: ${[error.message, ...elsewhere.map(({ detail }) => detail), ...next].join(' ')}`);
  complain(here.map(({ field }) => field));
}

/** The button says what a click would do; while it has to wait it counts down, once a second. */
function label() {
  const same = again && parse().order?.body === again.body;
  const seconds = same ? Math.ceil((again.at - Date.now()) / 1_000) : 0;
  const waiting = busy || resting || seconds > 0;
  if (waiting) button.setAttribute('aria-disabled', 'true');
  else button.removeAttribute('aria-disabled');
  if (busy) say(button, 'Placing…');
  else if (resting) say(button, 'Placed ✓');
  else if (seconds > 0) say(button, `Retry in ${seconds} s`);
  else say(button, same ? 'Retry with the same key' : 'Place order');
  clearTimeout(label.timer);
  if (seconds > 0) label.timer = setTimeout(label, 250);
}

function tellNotified({ notifications }) {
  if (awaited) notified(notifications.find(({ order_id }) => order_id === awaited));
}

function notified(notification) {
  if (!notification) return;
  awaited = null;
  outcome.append(` Notified after ${latency(notification)}.`);
}

function offerPath(id, words, known) {
  path.hidden = !id;
  if (!id) return;
  say(path, words);
  path.onclick = () => orderPath.open(id, known);
}

const values = () => Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value]));
const parse = () => parseOrder(values(), config.value().limits);

function tell(kind, headline, { user, product, quantity }, rest) {
  awaited = null;
  outcome.dataset.kind = kind;
  outcome.replaceChildren(h('strong', {}, headline), ` ${quantity} × `, named(product), ' for ', named(user), rest);
}

/** Shows what is wrong beside each field and puts the cursor into the first such one. */
function complain(fields) {
  hints();
  const first = FIELDS.find((name) => fields.includes(name)) ?? (fields.includes('total') ? 'quantity' : null);
  if (first) form.elements[first].focus();
}
