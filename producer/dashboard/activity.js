// The activity log: parts that went down or came up, gaps in the feed, bursts that finished. It is also announced to screen
// readers, but gathered, so that they are interrupted at most every few seconds.

import { $, h, paint, setText } from './dom.js';
import { count, duration, stamp } from './format.js';
import { health } from './health.js';

const SHOWN = 60;
const ANNOUNCED = 3;
const PAUSE = 4_000; // ms between announcements

const WORDS = { good: 'Good', open: 'Note', bad: 'Problem', info: 'Info' };
const RESETS = {
  'other-replica': 'Another replica, or a restarted one, serves the feed now: the lists were fetched again.',
  'too-old': 'The feed was interrupted for too long to resume: the lists were fetched again.',
  'new-stream': 'A new feed was opened: the lists were fetched again.',
  gap: 'The feed has a gap: the lists were fetched again.',
};

const list = $('activity-log');
const down = new Map(); // part → when it went down
let fresh = []; // entries to be drawn, oldest first
let unannounced = [];
let announcing = null;
let letters = null;
let refusedBefore = null;

/** Adds a line; `kind` is good, open, bad or info. A line with the `id` of the newest one replaces it. */
export function add({ kind, text, id = null, quietly = false }) {
  const entry = { kind, text, id, at: new Date().toISOString() };
  if (id !== null && fresh.at(-1)?.id === id) fresh.pop();
  fresh = [...fresh, entry].slice(-SHOWN);
  paint(draw);
  if (!quietly) announce(text);
}

export function start({ api, feed, stats }) {
  let reachable = true;
  let lost = null;
  api.onReachable((answers) => {
    if (answers === reachable) return;
    reachable = answers;
    if (!answers) went('api', 'bad', 'The API does not answer. The page keeps its last state.');
    else came('api', 'The API answers again');
  });
  feed.on('state', (state) => {
    if (state === 'live') {
      if (lost !== null) add({ kind: 'good', text: `The feed is live again after ${duration((Date.now() - lost) / 1_000)}.` });
      lost = null;
    } else if (state !== 'connecting' && lost === null) {
      lost = Date.now();
      add({ kind: 'open', text: 'The feed was interrupted. It reconnects automatically.' });
    }
  });
  feed.on('lagged', ({ missed }) => add({ kind: 'open', text: `This page was too slow for the feed and missed ${count(missed)} notifications. The orders themselves are safe.` }));
  feed.on('reset', ({ reason }) => RESETS[reason] && add({ kind: 'info', text: RESETS[reason] }));
  stats.on(({ value, stale }) => value && !stale && compare(value));
}

function compare(value) {
  for (const [key, { title, state, reason }] of health(value)) {
    if (state === 'bad') went(key, 'bad', `${title} is down. ${sentence(reason)}`);
    else if (state === 'good') came(key, `${title} is up again`);
  }
  const { waiting } = value.dead_letters;
  if (letters !== null && waiting > letters) add({ kind: 'open', text: `${count(waiting - letters)} more ${waiting - letters === 1 ? 'event is a dead letter' : 'events are dead letters'}; ${count(waiting)} wait to be replayed.` });
  letters = waiting ?? letters;
  const refused = value.shards.reduce((sum, shard) => sum + (shard.dead_events ?? 0), 0);
  if (refusedBefore !== null && refused > refusedBefore) add({ kind: 'bad', text: `Kafka refused ${count(refused - refusedBefore)} more events for good; they are in the table outbox_dead.` });
  if (value.shards.every(({ up }) => up)) refusedBefore = refused;
}

function went(key, kind, text) {
  if (down.has(key)) return;
  down.set(key, Date.now());
  add({ kind, text });
}

function came(key, text) {
  if (!down.has(key)) return;
  add({ kind: 'good', text: `${text} after ${duration((Date.now() - down.get(key)) / 1_000)}.` });
  down.delete(key);
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}`.replace(/[^.!?]$/, '$&.');

function draw() {
  $('activity-empty').hidden = true;
  for (const { kind, text, id, at } of fresh) {
    const node = h('li', { 'data-kind': kind, 'data-id': id }, stamp(at), h('p', { dir: 'auto' }, h('span', { class: 'unseen' }, `${WORDS[kind] ?? ''}: `), text));
    if (id !== null && list.firstChild?.dataset.id === id) list.firstChild.remove();
    list.prepend(node);
  }
  fresh = [];
  while (list.children.length > SHOWN) list.lastChild.remove();
}

/** Announces a text to screen readers, without a line in the log. */
export function announce(text) {
  unannounced.push(text);
  if (unannounced.length > 20) unannounced.shift();
  announcing ??= setTimeout(flush, 300);
}

function flush() {
  const more = unannounced.length - ANNOUNCED;
  setText($('announcer'), `${unannounced.slice(-ANNOUNCED).join(' ')}${more > 0 ? ` And ${more} more.` : ''}`);
  unannounced = [];
  announcing = setTimeout(() => {
    announcing = null;
    if (unannounced.length > 0) flush();
  }, PAUSE);
}
