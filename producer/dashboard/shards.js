// The shard of a user, by the API's own rule, so that the page can show it while the reader types. The ranges are fetched
// once; `onKnown` reports them.

import { backoff, shardMap } from './api.js';

let shards = [];
let asking = false;
const listeners = [];

/** `listener()` is called once the ranges are known, at once if they are. */
export function onKnown(listener) {
  if (shards.length > 0) listener();
  else listeners.push(listener);
  if (!asking) ask(0);
}

async function ask(tries) {
  asking = true;
  try {
    ({ shards } = await shardMap());
    for (const listener of listeners.splice(0)) listener();
  } catch {
    setTimeout(ask, backoff(tries), tries + 1);
  }
}

/** Returns the first shard whose range has the first character, ASCII-upper-cased; users outside all ranges are on the last. */
export function shardOf(user) {
  const [first = ''] = user;
  const letter = first.replace(/[a-z]/, (small) => small.toUpperCase());
  const home = shards.find(({ users }) => first && users[0] <= letter && letter <= users.at(-1));
  return home ?? shards.at(-1);
}

/** `A–M`, as people write a range. */
export const range = (users) => users.replace('-', '–');

/** `shard1 (A–M)`, or just the name while the ranges are not known. */
export function titleOf(name) {
  const shard = shards.find((candidate) => candidate.name === name);
  return shard ? `${name} (${range(shard.users)})` : name;
}
