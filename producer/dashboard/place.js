// Placing an order. One intent is one idempotency key: it stays with the same order through every retry until the
// API gives a definite answer, so neither a double click nor an unknown outcome can place it twice.

import { $, h, setText } from './dom.js';
import { latency } from './format.js';
import { formatCents, parsePrice } from './money.js';
import { parseOrder, parseQuantity } from './new-order.js';
import { named } from './names.js';
import * as orderTrail from './order-trail.js';
import { placed } from './orders.js';
import * as shards from './shards.js';

const REST = 700; // ms after an answer in which a second click is still the same click
const REMEMBERED = 20; // orders of unknown outcome whose key is kept while other orders are placed
const FIELDS = ['user_id', 'product_name', 'quantity', 'price'];
const SAFE = 'Retrying is safe: with the same key it cannot be placed twice.';

const form = $('place-form');
const button = form.querySelector('button');
const outcome = $('outcome');
const trail = $('outcome-trail');

let api;
let feed;
let stats;
let config;
const keys = new Map(); // body of an order that is not answered for good → { key, unknown: it may be stored }
const left = new Set(); // fields that the reader has filled in and left
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
  feed.on('frame', showNotified);
  feed.on('recent', showNotified);
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
    return showErrors(Object.keys(errors));
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

/** Shows under each field its error, or what is already known while the reader types. */
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
    setText(line, shown ?? known[name] ?? '');
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
    report('good', `Stored on ${shards.titleOf(answer.shard)}.`, order, '.');
    offerTrail(answer.order.id, 'Show its trail', answer);
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

/** Reports exactly what is known, and offers a retry with the same key where that can help. */
function refused(order, open, error) {
  offerTrail(null);
  if (!(error instanceof api.Problem || error instanceof api.Unreachable)) {
    report('bad', 'This page failed.', order, ` may or may not be stored. ${SAFE}`);
    console.error(error);
  } else if (error instanceof api.Unreachable) {
    open.unknown = true;
    report('open', 'No answer.', order, ` was sent, but the API did not reply: it may or may not be stored. ${SAFE}`);
  } else if (error.kind === 'not-accepted' || error.kind === 'refused') {
    const earlier = open.unknown ? ` The try before this one may still have stored it. ${SAFE}` : '';
    report(open.unknown ? 'open' : 'bad', open.unknown ? 'Not accepted this time.' : 'Not stored.', order, ` was not accepted. ${error.message}${earlier}`);
  } else if (error.kind === 'outcome-unknown') {
    open.unknown = true;
    report('open', 'Outcome unknown.', order, ` was sent to its shard, which did not answer in time: it may still be stored. ${SAFE}`);
    if (error.orderId) offerTrail(error.orderId, 'Find it');
  } else if (error.status >= 500) {
    open.unknown = true;
    report('open', 'The API failed.', order, ` may or may not be stored. ${error.message} ${SAFE}`);
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
  report('bad', 'Not stored.', order, `: ${[error.message, ...elsewhere.map(({ detail }) => detail), ...next].join(' ')}`);
  showErrors(here.map(({ field }) => field));
}

/** Labels the button with the effect of a click; while it has to wait it counts down, once a second. */
function label() {
  const same = again && parse().order?.body === again.body;
  const seconds = same ? Math.ceil((again.at - Date.now()) / 1_000) : 0;
  const waiting = busy || resting || seconds > 0;
  if (waiting) button.setAttribute('aria-disabled', 'true');
  else button.removeAttribute('aria-disabled');
  if (busy) setText(button, 'Placing…');
  else if (resting) setText(button, 'Placed ✓');
  else if (seconds > 0) setText(button, `Retry in ${seconds} s`);
  else setText(button, same ? 'Retry with the same key' : 'Place order');
  clearTimeout(label.timer);
  if (seconds > 0) label.timer = setTimeout(label, 250);
}

function showNotified({ notifications }) {
  if (awaited) notified(notifications.find(({ order_id }) => order_id === awaited));
}

function notified(notification) {
  if (!notification) return;
  awaited = null;
  outcome.append(` Notified after ${latency(notification)}.`);
}

function offerTrail(id, words, known) {
  trail.hidden = !id;
  if (!id) return;
  setText(trail, words);
  trail.onclick = () => orderTrail.open(id, known);
}

const values = () => Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value]));
const parse = () => parseOrder(values(), config.value().limits);

function report(kind, headline, { user, product, quantity }, rest) {
  awaited = null;
  outcome.dataset.kind = kind;
  outcome.replaceChildren(h('strong', {}, headline), ` ${quantity} × `, named(product), ' for ', named(user), rest);
}

/** Shows the error of each field and puts the cursor into the first field with one. */
function showErrors(fields) {
  hints();
  const first = FIELDS.find((name) => fields.includes(name)) ?? (fields.includes('total') ? 'quantity' : null);
  if (first) form.elements[first].focus();
}
