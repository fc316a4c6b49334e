// Placing an order. One intent is one idempotency key: it stays with the same order through every retry until the
// API gives a definite answer, so neither a double click nor an unknown outcome can place it twice.

import * as api from './api.js';
import { $, h, quoted, say } from './dom.js';
import { notificationOf } from './feed.js';
import { latency } from './format.js';
import { formatCents, parsePrice } from './money.js';
import { parseOrder, parseQuantity } from './new-order.js';
import { shardOf, titleOf } from './shards.js';

const REST = 700; // ms after an answer in which a second click is still the same click
const FIELDS = ['user_id', 'product_name', 'quantity', 'price'];
const SAFE = 'Retry is safe: with the same key the order cannot be placed twice.';

const form = $('place');
const button = form.querySelector('button');
const outcome = $('outcome');
const retry = $('retry');

const keys = new Map(); // body of an order whose fate is open → its key
let errors = {}; // field → sentence, while it is shown
let busy = false;
let stored = () => {};
let countdown;
let last = null; // id of the order the outcome line still awaits the notification of

/** Wires the form; `onStored(answer)` is called with each 201. */
export function start(onStored) {
  stored = onStored;
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    if (busy) return;
    const { order, errors: found } = parseOrder(values());
    complain(found);
    if (order) send(order);
  });
  form.addEventListener('input', ({ target }) => {
    delete errors[target.name];
    hints();
  });
  button.disabled = false;
  hints();
}

/** Under each field: its error, or what is known already while one types. */
export function hints() {
  const { user_id, quantity, price } = values();
  const shard = user_id && shardOf(user_id);
  const pieces = parseQuantity(quantity).value;
  const { cents } = parsePrice(price);
  const known = {
    user_id: shard ? `Goes to ${titleOf(shard.name)}.` : 'The first letter decides the shard.',
    price: pieces && cents ? `Total ${formatCents(pieces * cents)}` : '',
  };
  for (const name of FIELDS) {
    const line = $(`${name}-note`);
    line.classList.toggle('error', name in errors);
    form.elements[name].setAttribute('aria-invalid', name in errors);
    say(line, errors[name] ?? known[name] ?? '');
  }
}

/** The feed has told of `notification`: if it is of the order just placed, the outcome line says so. */
export function notified(notification) {
  if (notification?.order_id !== last) return;
  last = null;
  outcome.append(` Notified after ${latency(notification)}.`);
}

async function send(order) {
  const key = keys.get(order.body) ?? api.newKey();
  keys.set(order.body, key);
  busy = true;
  button.setAttribute('aria-disabled', 'true');
  say(button, 'Placing…');
  retry.hidden = true;
  clearTimeout(countdown);
  let rest = 0;
  try {
    const answer = await api.place(order.body, key);
    keys.delete(order.body);
    tell('good', `Stored on ${titleOf(answer.shard)}.`, order, '.');
    last = answer.order.id;
    notified(notificationOf(last)); // the feed may be faster than the reply
    stored(answer);
    say(button, 'Placed ✓');
    rest = REST;
  } catch (error) {
    refused(order, error);
  } finally {
    setTimeout(() => {
      busy = false;
      button.removeAttribute('aria-disabled');
      say(button, 'Place order');
    }, rest);
  }
}

/** Says exactly what is known, and offers the same order with the same key again where that can help. */
function refused(order, error) {
  if (error instanceof api.Unreachable) {
    tell('open', 'No answer.', order, ` was sent, but the API did not reply: it may or may not be stored. ${SAFE}`);
  } else if (error.kind === 'not-accepted' || error.kind === 'refused') {
    tell('bad', 'Not stored.', order, ` was not accepted. ${error.message}`);
  } else if (error.kind === 'outcome-unknown') {
    const id = error.orderId ? ` as ${error.orderId}` : '';
    tell('open', 'Outcome unknown.', order, ` was handed to its shard, which has not answered: it may still appear${id}. ${SAFE}`);
  } else if (error.status >= 500) {
    tell('open', 'The API failed.', order, ` may or may not be stored. ${error.message} ${SAFE}`);
  } else {
    return invalid(order, error);
  }
  offerRetry(order, error.retryAfter ?? 0);
}

function invalid(order, error) {
  keys.delete(order.body);
  if (!(error instanceof api.Problem)) throw error; // a bug of this page: the console should have it
  const other = error.fields.filter(({ field }) => !FIELDS.includes(field));
  tell('bad', 'Not stored.', order, `: ${[error.message, ...other.map(({ detail }) => detail)].join(' ')}`);
  complain(Object.fromEntries(error.fields.map(({ field, detail }) => [field, detail])));
}

function offerRetry(order, seconds) {
  retry.hidden = false;
  retry.disabled = seconds > 0;
  say(retry, seconds > 0 ? `Retry in ${seconds} s` : 'Retry');
  retry.onclick = () => {
    button.focus();
    if (!busy) send(order);
  };
  if (seconds > 0) countdown = setTimeout(offerRetry, 1_000, order, seconds - 1);
}

const values = () => Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value]));

function tell(kind, headline, { user, product, quantity }, rest) {
  outcome.dataset.kind = kind;
  outcome.replaceChildren(h('strong', {}, headline), ` ${quantity} × `, quoted(product), ' for ', quoted(user), rest);
}

/** Shows what is wrong beside each field and puts the cursor into the first such one. */
function complain(found) {
  errors = found;
  hints();
  const first = FIELDS.find((name) => name in errors);
  if (first) form.elements[first].focus();
}
