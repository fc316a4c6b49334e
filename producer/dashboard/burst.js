// A burst: up to a thousand orders at once, to see the pipeline work. Each has its own idempotency key; one whose
// outcome is unknown is sent again with the same key, so a burst never places an order twice. The outcomes are counted.

import { $, h, paint, setText } from './dom.js';
import { count, duration, rate } from './format.js';

const MOST = 1_000;
const AT_ONCE = 8;
const TRIES = 3; // of one order, while its outcome is unknown
const KINDS = [
  ['stored', 'Stored', 'good'],
  ['notAccepted', 'Not accepted', 'bad'],
  ['unknown', 'Outcome unknown', 'open'],
  ['refused', 'Refused', 'bad'],
];
const PRODUCTS = ['Mechanical keyboard', 'Desk lamp', 'Notebook', 'Monitor arm', 'Headphones', 'Coffee grinder', 'Water bottle', 'Backpack'];
const LETTERS = 'abcdefghijklmnopqrstuvwxyz';

const form = $('burst-form');
const field = $('burst-number');
const button = form.querySelector('button');
const note = $('burst-note');
const bar = $('burst-progress');
const shown = new Map(); // kind → its <dd>

let api;
let activity;
let run = null; // { wanted, taken, counts, began, ended, stopping, wake: functions that end a wait }

export function start(context) {
  ({ api, activity } = context);
  for (const [kind, words, tone] of KINDS) {
    const value = h('dd', {}, '0');
    shown.set(kind, value);
    $('burst-counts').append(h('div', { 'data-kind': tone, 'data-none': true }, h('dt', {}, words), value));
  }
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    if (run && !run.ended) stop();
    else if (!numberError()) send(Number(field.value.trim()));
    else field.focus();
    draw();
  });
  field.addEventListener('input', draw);
  button.disabled = false;
  draw();
}

function numberError() {
  const text = field.value.trim();
  const fits = /^\d{1,6}$/.test(text) && Number(text) >= 1 && Number(text) <= MOST;
  return fits ? null : `A whole number from 1 to ${count(MOST)}.`;
}

async function send(wanted) {
  const mine = { wanted, taken: 0, counts: { stored: 0, notAccepted: 0, unknown: 0, refused: 0 }, began: performance.now(), ended: 0, stopping: false, wake: new Set() };
  run = mine;
  field.readOnly = true;
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, wanted) }, () => worker(mine)));
  mine.ended = performance.now();
  field.readOnly = false;
  paint(draw);
  activity.add({ kind: mine.counts.stored === wanted ? 'good' : 'open', id: 'burst', text: `Burst ${mine.stopping ? 'stopped' : 'finished'}: ${inWords(mine)}.` });
}

function stop() {
  run.stopping = true;
  for (const wake of run.wake) wake();
}

async function worker(mine) {
  while (mine.taken < mine.wanted && !mine.stopping) {
    mine.taken += 1;
    mine.counts[await place(mine, newOrder())] += 1;
    paint(draw);
  }
}

/** Places one order and returns the kind of its outcome. A `Retry-After` is respected. */
async function place(mine, body) {
  const key = api.newKey();
  let unknown = false;
  for (let tries = 0; ; tries += 1) {
    try {
      await api.place(body, key);
      return 'stored';
    } catch (error) {
      const definite = error.kind === 'not-accepted' || error.kind === 'refused' || (error.status >= 400 && error.status < 500);
      unknown ||= !definite;
      if (!definite || error.kind === 'not-accepted') await wait(mine, 1_000 * error.retryAfter || api.backoff(tries));
      if (definite && !unknown) return error.kind === 'not-accepted' ? 'notAccepted' : 'refused';
      if (mine.stopping || tries + 1 >= TRIES) return 'unknown'; // an earlier try may have stored it
    }
  }
}

/** Waits `ms` milliseconds, or until the burst is stopped. */
function wait(mine, ms) {
  if (mine.stopping) return null;
  return new Promise((done) => {
    const wake = () => {
      clearTimeout(timer);
      mine.wake.delete(wake);
      done();
    };
    const timer = setTimeout(wake, ms);
    mine.wake.add(wake);
  });
}

function newOrder() {
  const letter = LETTERS[Math.floor(Math.random() * LETTERS.length)];
  const cents = 100 + Math.floor(Math.random() * 49_900);
  const price = `${Math.floor(cents / 100)}.${String(cents % 100).padStart(2, '0')}`;
  const product = PRODUCTS[Math.floor(Math.random() * PRODUCTS.length)];
  const quantity = 1 + Math.floor(Math.random() * 5);
  return `{"user_id":"${letter}-burst","product_name":"${product}","quantity":${quantity},"price":${price}}`;
}

function draw() {
  const running = run !== null && run.ended === 0;
  const wrong = running ? null : numberError();
  field.setAttribute('aria-invalid', Boolean(wrong));
  note.classList.toggle('error', Boolean(wrong));
  setText(button, !running ? 'Send' : run.stopping ? 'Stopping…' : 'Stop');
  button.classList.toggle('stop', running);
  setText(note, wrong ?? (run ? inWords(run) : `${AT_ONCE} at a time, users from A to Z, so every shard gets its share.`));
  if (!run) return;
  const answered = sum(run.counts);
  bar.max = run.wanted;
  bar.value = answered;
  for (const [kind, value] of shown) {
    setText(value, count(run.counts[kind]));
    value.parentNode.toggleAttribute('data-none', run.counts[kind] === 0);
  }
}

function inWords({ wanted, counts, began, ended, stopping }) {
  const answered = sum(counts);
  const seconds = ((ended || performance.now()) - began) / 1_000;
  const unsent = ended && stopping && answered < wanted ? `, ${count(wanted - answered)} not sent` : '';
  return `${count(counts.stored)} of ${count(wanted)} stored in ${duration(seconds)} (${rate(counts.stored / Math.max(seconds, 0.001))})${unsent}`;
}

const sum = (counts) => Object.values(counts).reduce((all, one) => all + one, 0);
