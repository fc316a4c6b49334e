// The log of what happened: parts that went down or came up, gaps in the feed, bursts that finished. It is spoken, too,
// but gathered, so that a screen reader is interrupted at most every few seconds.

import { $, h, paint, say as write } from './dom.js';
import { count, duration, stamp } from './format.js';
import { health } from './health.js';

const SHOWN = 60;
const SPOKEN = 3;
const PAUSE = 4_000; // ms between utterances

const WORDS = { good: 'Good', open: 'Note', bad: 'Trouble', info: 'Info' };
const RESETS = {
  'other-replica': 'Another replica, or a restarted one, serves the feed now: the lists were fetched anew.',
  'too-old': 'The feed was away for too long to go on where it was: the lists were fetched anew.',
  'new-stream': 'The feed began anew: the lists were fetched again.',
  gap: 'The feed has a gap: the lists were fetched anew.',
};

const list = $('activity-log');
const down = new Map(); // part → when it went down
let fresh = []; // entries to be drawn, oldest first
let unsaid = [];
let speaking = null;
let letters = null;
let dead = null;

/** One line: `kind` is good, open, bad or info. One with the `id` of the newest line takes its place. */
export function add({ kind, text, id = null, quietly = false }) {
  const entry = { kind, text, id, at: new Date().toISOString() };
  if (id !== null && fresh.at(-1)?.id === id) fresh.pop();
  fresh = [...fresh, entry].slice(-SHOWN);
  paint(draw);
  if (!quietly) say(text);
}

export function start({ api, feed, stats }) {
  let reachable = true;
  let lost = null;
  api.onReachable((answers) => {
    if (answers === reachable) return;
    reachable = answers;
    if (!answers) went('api', 'bad', 'The API does not answer. What is shown stays as it was.');
    else came('api', 'The API answers again');
  });
  feed.on('state', (state) => {
    if (state === 'live') {
      if (lost !== null) add({ kind: 'good', text: `The feed is live again after ${duration((Date.now() - lost) / 1_000)}.` });
      lost = null;
    } else if (state !== 'connecting' && lost === null) {
      lost = Date.now();
      add({ kind: 'open', text: 'The feed broke off. It reconnects by itself.' });
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
  if (dead !== null && refused > dead) add({ kind: 'bad', text: `Kafka refused ${count(refused - dead)} more events for good; they are kept in outbox_dead.` });
  if (value.shards.every(({ up }) => up)) dead = refused;
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

/** Spoken only. */
export function say(text) {
  unsaid.push(text);
  if (unsaid.length > 20) unsaid.shift();
  speaking ??= setTimeout(speak, 300);
}

function speak() {
  const more = unsaid.length - SPOKEN;
  write($('announcer'), `${unsaid.slice(-SPOKEN).join(' ')}${more > 0 ? ` And ${more} more.` : ''}`);
  unsaid = [];
  speaking = setTimeout(() => {
    speaking = null;
    if (unsaid.length > 0) speak();
  }, PAUSE);
}
