// The figures: each shard up or down and what waits there, asked for every two seconds while someone looks.

import * as api from './api.js';
import { $, h, say } from './dom.js';
import { count } from './format.js';
import { range } from './shards.js';

const PERIOD = 2_000; // ms
const COUNTED = 10_000; // the API counts no further

const tiles = new Map(); // shard name → set(figures)
let timer;
let asking = false;

export function start() {
  document.addEventListener('visibilitychange', poll);
  poll();
}

/** Makes a tile for every shard before anything else is known about it. */
export function expect(shards) {
  for (const shard of shards) if (!tiles.has(shard.name)) tiles.set(shard.name, tile(shard));
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  let shards = [];
  try {
    ({ shards } = await api.stats());
  } catch {
    // Every tile then says "unknown".
  }
  expect(shards);
  tiles.forEach((set, name) => set(shards.find((shard) => shard.name === name)));
  asking = false;
  timer = setTimeout(poll, PERIOD);
}

const waiting = (jobs) => (jobs >= COUNTED ? `${count(COUNTED)}+` : count(jobs));

function tile({ name, users }) {
  const state = h('span', { class: 'pill', 'data-state': 'waiting' }, 'asking');
  const outbox = h('dd', {}, '–');
  const receipts = h('dd', {}, '–');
  const figure = (term, value) => h('div', {}, h('dt', {}, term), value);
  $('figures').append(
    h('section', { class: 'card figure' },
      h('h2', {}, h('span', {}, `${name} `, h('span', { class: 'quiet' }, range(users))), state),
      h('dl', {}, figure('Events waiting', outbox), figure('Receipts waiting', receipts))),
  );
  return (shard) => {
    say(state, !shard ? 'unknown' : shard.up ? 'up' : 'down');
    state.dataset.state = !shard ? 'waiting' : shard.up ? 'good' : 'bad';
    say(outbox, waiting(shard?.outbox));
    say(receipts, waiting(shard?.receipt_jobs));
  };
}
