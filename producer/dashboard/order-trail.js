// The trail of one order, in a dialog: accepted, stored, receipt, published, notified; when each step was done and how long it
// took. The trail is fetched again until all steps are done; notifications of the feed are shown at once.

import * as config from './config.js';
import { $, h, setText, show } from './dom.js';
import { count, millis, utc } from './format.js';
import { amounts, formatCents } from './money.js';
import { named } from './names.js';
import { shardOf, titleOf } from './shards.js';

const TRIES = 12; // with the backoff of api.js about three minutes, then only on request
const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3 });
const seconds = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium' });
const OPEN = new Set(['waiting', 'pending', 'unknown', undefined]);

const dialog = $('order-trail');
const refresh = $('trail-refresh');
const receipt = $('trail-receipt');

let api;
let feed;
let steps;
let shown = null; // { id, trail, receiptText, receiptAsked, tries }
let timer;

export function start(context) {
  ({ api, feed } = context);
  steps = Object.fromEntries(['Accepted', 'Stored', 'Receipt', 'Published', 'Notified'].map((name) => [name.toLowerCase(), step(name)]));
  $('trail-steps').append(...Object.values(steps).map(({ node }) => node));
  $('trail-close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  });
  dialog.addEventListener('close', () => {
    shown = null;
    clearTimeout(timer);
  });
  refresh.addEventListener('click', () => {
    shown.tries = 0;
    shown.receiptAsked = false;
    ask(shown);
  });
  feed.on('frame', ({ notifications }) => notifications.forEach(notified));
  document.addEventListener('visibilitychange', () => !document.hidden && shown?.paused && ask(shown));
}

export const isOpen = () => dialog.open;

/** Opens the trail of the order `id`; `known` = `{ order, shard }`, if the page has it already. */
export function open(id, known = null) {
  const mine = { id, trail: null, receiptText: null, receiptAsked: false, tries: 0 };
  shown = mine;
  setText($('trail-id'), id);
  $('trail-order').replaceChildren('\u00a0');
  if (known) {
    const notification = feed.notificationOf(id);
    mine.trail = withNotification({ order: known.order, shard: known.shard, accepted: { at: known.order.created_at } }, notification);
  }
  draw(mine);
  setText($('trail-state'), 'Loading…');
  refresh.hidden = true;
  dialog.showModal();
  dialog.scrollTop = 0;
  ask(mine);
}

async function ask(mine) {
  clearTimeout(timer);
  mine.paused = document.hidden;
  if (mine.paused) return;
  let failure = null;
  try {
    const trail = await api.trail(mine.id);
    mine.trail = withNotification(trail, feed.notificationOf(mine.id));
  } catch (error) {
    failure = error;
    if (!(error instanceof api.Problem || error instanceof api.Unreachable)) console.error(error);
  }
  if (shown !== mine) return;
  draw(mine);
  const open = failure !== null || stillOpen(mine.trail);
  const more = open && mine.tries < TRIES;
  if (more) timer = setTimeout(ask, Math.max(1_000 * (failure?.retryAfter ?? 0), api.backoff(mine.tries++)), mine);
  setText($('trail-state'), failure ? whyNot(failure, more) : summary(mine.trail, more));
  $('trail-state').classList.toggle('error', failure !== null);
  refresh.hidden = !open;
  if (mine.trail?.receipt?.state === 'stored') loadReceipt(mine);
}

const stillOpen = ({ receipt, published, notified }) =>
  receipt?.state === 'pending' || receipt?.state === 'unknown' || (OPEN.has(notified?.state) && published?.state !== 'dead');

function notified(notification) {
  if (!shown?.trail || shown.id !== notification.order_id || shown.trail.notified?.state === 'notified') return;
  shown.trail = withNotification(shown.trail, notification);
  draw(shown);
  setText($('trail-state'), summary(shown.trail, true));
}

function withNotification(trail, notification) {
  if (!notification || trail.notified?.state === 'notified') return trail;
  const { partition, offset, published_at, notified_at } = notification;
  return { ...trail, published: { state: 'published', at: published_at, partition, offset }, notified: { state: 'notified', at: notified_at } };
}

function summary({ receipt, published, notified }, more) {
  const waits = [];
  if (receipt?.state === 'pending') waits.push('its receipt');
  if (published?.state === 'waiting') waits.push('its event');
  if (notified?.state === 'waiting') waits.push('its notification');
  if (published?.state === 'dead') return 'Kafka refused its event for good: there is no notification until the event is requeued.';
  if (waits.length > 0) return `The order is safe. ${more ? 'Watching for' : 'Still to come:'} ${waits.join(', ')}.`;
  if (receipt?.state === 'unknown' || published?.state === 'unknown' || notified?.state === 'unknown') return 'Not every step is known; each shows the reason.';
  if (receipt?.state === 'missing') return 'Every step is done, but the receipt is gone from S3.';
  return 'Complete: every step is done.';
}

function whyNot(error, more) {
  const next = more ? ' Retrying.' : '';
  if (error.status === 404) return `No shard has an order with this id${more ? ', so far' : ''}.${next}`;
  return `${error.message}${next}`;
}

function draw({ trail, receiptText }) {
  const { order, shard, accepted, stored, receipt: paper, published, notified, note } = trail ?? {};
  const home = stored?.shard ?? shard ?? (order && shardOf(order.user_id)?.name);
  if (order) drawOrder(order);
  const from = accepted?.at;
  steps.accepted.set(from ? 'done' : 'open', from ? 'Accepted by the API' : '–', from);
  steps.stored.set(home ? 'done' : 'open', home ? `Committed on ${titleOf(home)} before the answer` : '–');
  steps.receipt.set(...receiptWords(paper), paper?.at, from && paper?.at ? roughly(from, paper.at) : null);
  steps.published.set(...publishedWords(published, note), published?.at, since(from, published?.at, 'accepted'));
  steps.notified.set(...notifiedWords(notified, published, note), notified?.at, since(from, notified?.at, 'accepted'), since(published?.at, notified?.at, 'published'));
  drawTrace(trail?.trace_id);
  if (receiptText === null) setText(receipt, paper?.state === 'missing' ? 'It was written once, but S3 no longer has it.' : paper?.state === 'stored' ? 'Loading…' : 'Shown here once it is written.');
}

function drawOrder(order) {
  const { total } = amounts(order);
  $('trail-order').replaceChildren(`${count(order.quantity)} × `, named(order.product_name), ' for ', h('b', {}, named(order.user_id)), `: ${formatCents(total)}`);
}

/** The trace of the order, with a link if this installation has an address for traces. */
function drawTrace(id) {
  const place = $('trail-trace');
  place.hidden = !id;
  const template = config.value().trace_url_template;
  const shownNow = `${id} ${template}`;
  if (!id || place.dataset.shown === shownNow) return;
  place.dataset.shown = shownNow;
  const text = h('code', {}, id);
  place.replaceChildren('Trace ', template ? h('a', { href: template.replaceAll('{trace_id}', id), target: '_blank', rel: 'noopener' }, text) : text);
}

function receiptWords(paper) {
  const tries = paper?.attempts > 1 ? `, ${count(paper.attempts)} tries so far` : '';
  switch (paper?.state) {
    case 'stored': return ['done', 'Written to S3'];
    case 'pending': return ['waiting', `Waiting to be written to S3${tries}`];
    case 'missing': return ['lost', 'Was written, but S3 no longer has it'];
    case 'unknown': return ['unsure', 'S3 does not answer'];
    default: return ['open', '–'];
  }
}

function publishedWords(published, note) {
  switch (published?.state) {
    case 'published': return ['done', `In Kafka: partition ${published.partition ?? '?'}, offset ${count(published.offset)}`];
    case 'waiting': return ['waiting', 'In the outbox, waiting for Kafka'];
    case 'dead': return ['lost', 'Refused by Kafka for good; kept in the shard’s table outbox_dead'];
    case 'unknown': return ['unsure', published.note ?? note ?? 'Not found in the searched records'];
    default: return ['open', '–'];
  }
}

function notifiedWords(notified, published, note) {
  switch (notified?.state) {
    case 'notified': return ['done', 'Notified by the consumer'];
    case 'waiting': return ['waiting', published?.state === 'published' ? 'Waiting for the consumer' : 'Follows the event'];
    case 'unknown': return ['unsure', notified.note ?? note ?? 'Not found in the searched records'];
    default: return ['open', '–'];
  }
}

/** The time between two moments, at least 0 ms: the clocks of two machines may differ a little. */
function since(from, to, word) {
  const ms = Date.parse(to) - Date.parse(from);
  return Number.isNaN(ms) ? null : `${millis(Math.max(0, ms))} after ${word}`;
}

/** The time between two moments in whole seconds, since S3 keeps no more. */
function roughly(from, to) {
  const seconds = Math.floor(Date.parse(to) / 1_000) - Math.floor(Date.parse(from) / 1_000);
  return seconds < 1 ? 'within a second' : `about ${count(seconds)} s after accepted`;
}

async function loadReceipt(mine) {
  if (mine.receiptAsked) return;
  mine.receiptAsked = true;
  try {
    mine.receiptText = await api.receipt(mine.id);
    if (shown === mine) setText(receipt, mine.receiptText);
  } catch (error) {
    if (shown !== mine) return;
    const pending = error.receiptStatus === 'pending';
    setText(receipt, pending ? 'Not written yet.' : `It cannot be shown now. ${error.message}`);
    refresh.hidden = false;
  }
}

function step(name) {
  const words = h('span', { class: 'words' });
  const at = h('time', {});
  const deltas = [h('span', { class: 'quiet' }), h('span', { class: 'quiet' })];
  const state = h('span', { class: 'unseen' });
  const node = h('li', {}, h('b', {}, name, ' '), state, words, h('span', { class: 'when' }, at, ...deltas));
  return { node, set };

  function set(is, text, iso, ...after) {
    if (node.dataset.state !== is) node.dataset.state = is;
    setText(state, { done: 'done: ', waiting: 'waiting: ', lost: 'lost: ', unsure: 'unknown: ', open: '' }[is]);
    setText(words, text);
    const date = iso ? new Date(iso) : null;
    const today = date?.toDateString() === new Date().toDateString();
    show(at, date && `${today ? '' : `${day.format(date)}, `}${(name === 'Receipt' ? seconds : clock).format(date)}`); // S3 keeps whole seconds only
    if (date) {
      at.dateTime = iso;
      at.title = utc(iso);
    }
    deltas.forEach((delta, index) => setText(delta, after[index] ?? ''));
  }
}
