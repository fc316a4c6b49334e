// Which shard a user falls on: the API's own rule, told again so that the page can say it while one types.

let shards = [];

/** Takes the ranges of `GET /api/shards`. */
export function learn(list) {
  shards = list;
}

/** The first range that holds the first character, ASCII-upper-cased; what no range names goes to the last shard. */
export function shardOf(user) {
  const [first = ''] = user;
  const letter = /^[a-z]$/.test(first) ? first.toUpperCase() : first;
  const home = /^[A-Z]$/.test(letter) && shards.find(({ users }) => users[0] <= letter && letter <= users.at(-1));
  return { shard: home || shards.at(-1), inRange: Boolean(home) };
}

export const named = (name) => shards.find((shard) => shard.name === name);

/** `A–M`, as people write a range. */
export const range = (users) => users.replace('-', '–');
