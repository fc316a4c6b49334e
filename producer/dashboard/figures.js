// The figures: each shard up or down and what waits there, asked for every two seconds while someone looks.

import * as api from './api.js';
import { $, h, say } from './dom.js';
import { count } from './format.js';
import { range } from './shards.js';

const PERIOD = 2_000; // ms

const tiles = new Map(); // name → {set}
let back = () => {};
let timer = null;
let asking = false;

/** `onShardBack()` is called when a shard that was down answers again. */
export function start(onShardBack) {
  back = onShardBack;
  document.addEventListener('visibilitychange', poll);
  poll();
}

/** Makes a tile for every shard before anything is known about it. */
export function expect(shards) {
  for (const shard of shards) if (!tiles.has(shard.name)) tile(shard);
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  try {
    const { shards } = await api.stats();
    expect(shards);
    const known = new Map(shards.map((shard) => [shard.name, shard]));
    tiles.forEach(({ set }, name) => set(known.get(name)));
  } catch {
    tiles.forEach(({ set }) => set());
  }
  asking = false;
  timer = setTimeout(poll, PERIOD);
}

function tile({ name, users }) {
  const state = h('span', { class: 'pill', 'data-state': 'waiting' }, 'asking');
  const outbox = h('dd', {}, '–');
  const receipts = h('dd', {}, '–');
  let wasDown = false;
  const set = (shard) => {
    const word = !shard ? 'unknown' : shard.up ? 'up' : 'down';
    say(state, word);
    state.dataset.state = { up: 'good', down: 'bad', unknown: 'waiting' }[word];
    say(outbox, count(shard?.outbox));
    say(receipts, count(shard?.receipt_jobs));
    if (word === 'up' && wasDown) back();
    if (word !== 'unknown') wasDown = word === 'down';
  };
  tiles.set(name, { set });
  $('shards').append(
    h('li', { class: 'card figure' },
      h('h3', {}, h('span', {}, `${name} `, h('span', { class: 'quiet' }, `users ${range(users)}`)), state),
      h('dl', {},
        h('div', {}, h('dt', {}, 'Events waiting'), outbox),
        h('div', {}, h('dt', {}, 'Receipts waiting'), receipts))),
  );
}
