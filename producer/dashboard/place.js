// Placing an order. One intent is one idempotency key: it stays with the same order through every retry until the
// API gives a definite answer, so neither a double click nor an unknown outcome can place it twice.

import * as api from './api.js';
import { $, h, quoted, say } from './dom.js';
import { latency } from './format.js';
import { formatCents, parsePrice } from './money.js';
import { parseOrder, parseQuantity } from './new-order.js';
import { range, shardOf } from './shards.js';

const REST = 700; // ms after an answer in which a second click is still the same click

const form = $('place');
const button = form.querySelector('button');
const outcome = $('outcome');
const retry = $('retry');
const fields = ['user_id', 'product_name', 'quantity', 'price'];

const keys = new Map(); // body of an order whose fate is open → its key
const errors = new Map(); // field → sentence, while it is shown
let busy = false;
let placed = () => {};
let last = null; // the id the outcome line speaks of
let countdown;

/** Wires the form; `onPlaced(answer)` is called once per stored order. */
export function start(onPlaced) {
  placed = onPlaced;
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    submit();
  });
  form.addEventListener('input', (event) => {
    if (errors.has(event.target.name)) complain(check().errors, event.target.name);
    hints();
  });
  button.disabled = false;
  hints();
}

/** Under each field: its error, or what is known already while one types. */
export function hints() {
  const { user_id, quantity, price } = values();
  const { shard, inRange } = shardOf(user_id);
  const where = shard && (inRange ? `${shard.name} (${range(shard.users)})` : `${shard.name}, which takes all other names`);
  const total = { count: parseQuantity(quantity).value, cents: parsePrice(price).cents };
  note('user_id', user_id && where ? `Will be stored on ${where}.` : 'The first letter decides the shard.');
  note('product_name', '');
  note('quantity', '');
  note('price', total.count && total.cents ? `Total ${formatCents(total.count * total.cents)}` : '');
}

/** The feed has told of `notification`: if it is the order just placed, the outcome line says so. */
export function notified(notification) {
  if (notification.order_id === last) outcome.append(` Notified after ${latency(notification)}.`);
  if (notification.order_id === last) last = null;
}

function submit() {
  if (busy) return;
  const { errors: found, order } = check();
  complain(found);
  if (order) send(order);
}

async function send(order) {
  busy = true;
  button.setAttribute('aria-disabled', 'true');
  say(button, 'Placing…');
  retry.hidden = true;
  clearInterval(countdown);
  const key = keys.get(order.body) ?? api.newKey();
  keys.set(order.body, key);
  let rest = 0;
  try {
    const answer = await api.place(order.body, key);
    keys.delete(order.body);
    rest = REST;
    last = answer.order.id;
    tell('good', h('strong', {}, `Stored on ${answer.shard_info ?? answer.shard}. `), describe(order), '.');
    say(button, 'Placed ✓');
    placed(answer);
  } catch (error) {
    refused(order, error);
  }
  setTimeout(() => {
    busy = false;
    button.removeAttribute('aria-disabled');
    say(button, 'Place order');
  }, rest);
}

function refused(order, error) {
  const open = error instanceof api.Unreachable || error.status >= 500;
  if (open) return stillOpen(order, error);
  keys.delete(order.body);
  if (!(error instanceof api.Problem)) throw error; // a bug of this page: let the console have it
  const known = error.fields.filter(({ field }) => fields.includes(field));
  const other = error.fields.filter(({ field }) => !fields.includes(field)).map(({ detail }) => detail);
  complain(Object.fromEntries(known.map(({ field, detail }) => [field, detail])));
  tell('bad', h('strong', {}, 'Not stored. '), [error.message, ...other].join(' '));
}

/** Nobody can say "stored" yet: say exactly what is known, and offer the same order with the same key again. */
function stillOpen(order, error) {
  const again = 'Retry is safe: it uses the same key, so the order cannot be placed twice.';
  if (error.kind === 'not-accepted') {
    tell('bad', h('strong', {}, 'Not accepted; nothing was stored. '), describe(order), `. ${error.message}`);
  } else if (error.kind === 'outcome-unknown') {
    const id = error.orderId && h('span', {}, ' as ', h('code', {}, error.orderId));
    tell('open', h('strong', {}, 'Outcome unknown. '), describe(order), ' was handed to its shard, which has not answered: it may still appear', id, `. ${again}`);
  } else if (error instanceof api.Unreachable) {
    tell('open', h('strong', {}, 'No answer. '), describe(order), ` was sent, but the API did not reply, so it may or may not be stored. ${again}`);
  } else {
    tell('open', h('strong', {}, 'The API failed. '), describe(order), ` may or may not be stored (${error.message}) ${again}`);
  }
  offerRetry(order, error.retryAfter ?? 0);
}

function offerRetry(order, seconds) {
  const until = Date.now() + seconds * 1_000;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1_000);
    retry.disabled = left > 0;
    say(retry, left > 0 ? `Retry in ${left} s` : 'Retry');
    if (left <= 0) clearInterval(countdown);
  };
  retry.hidden = false;
  retry.onclick = () => {
    if (busy) return;
    button.focus();
    send(order);
  };
  countdown = setInterval(tick, 250);
  tick();
}

const values = () => Object.fromEntries(fields.map((name) => [name, form.elements[name].value]));
const check = () => parseOrder(values());
const describe = ({ user, product, quantity }) => h('span', {}, `${quantity} × `, quoted(product), ' for ', quoted(user));

function tell(kind, ...parts) {
  outcome.dataset.kind = kind;
  outcome.replaceChildren(...parts.filter(Boolean));
}

/** Shows what is wrong with every field (or with `only` one) and puts the cursor on the first, if it was all of them. */
function complain(found, only) {
  for (const name of only ? [only] : fields) {
    if (found[name]) errors.set(name, found[name]);
    else errors.delete(name);
    const input = form.elements[name];
    if (found[name]) input.setAttribute('aria-invalid', 'true');
    else input.removeAttribute('aria-invalid');
  }
  hints();
  const first = fields.find((name) => errors.has(name));
  if (first && !only) form.elements[first].focus();
}

function note(name, hint) {
  const line = $(`${name}-note`);
  line.classList.toggle('error', errors.has(name));
  say(line, errors.get(name) ?? hint);
}
