// The shard of a user, by the API's own rule, so that the page can show it while the reader types. The ranges are fetched
// once; `onKnown` reports them.

import { backoff, shardMap } from './api.js';

let shards = [];
let ranges = [];
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
    ({ shards, ranges } = await shardMap());
    for (const listener of listeners.splice(0)) listener();
  } catch {
    setTimeout(ask, backoff(tries), tries + 1);
  }
}

/** Returns the shard of the last range that does not begin after the user's id, whose ASCII letters are upper-cased. */
export function shardOf(user) {
  const folded = user.replace(/[a-z]/g, (small) => small.toUpperCase());
  const home = ranges.findLast(({ from }) => compare(from, folded) <= 0);
  return shards.find(({ name }) => name === home?.shard);
}

/** Compares by code points; `<` would compare by UTF-16 units. */
function compare(one, other) {
  const [a, b] = [[...one], [...other]];
  const different = a.findIndex((character, at) => character !== b[at]);
  if (different < 0) return a.length - b.length;
  return different < b.length ? a[different].codePointAt(0) - b[different].codePointAt(0) : 1;
}

/** `A–M`, as people write a range. */
export const range = (users) => users.replace(/(^|\+)([A-Z0-9]+)-/g, '$1$2–');

/** `shard1 (A–M)`, or just the name while the ranges are not known. */
export function titleOf(name) {
  const shard = shards.find((candidate) => candidate.name === name);
  return shard ? `${name} (${range(shard.users)})` : name;
}
