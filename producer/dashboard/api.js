// The calls of the API. Each returns the JSON (or text) of the response, or throws a `Problem` if the API refuses the request,
// and `Unreachable` if it does not answer. `onReachable` reports whether it answers at all.

/** A problem (RFC 9457) that the API returned, with its `Retry-After`. */
export class Problem extends Error {
  constructor(response, body) {
    super(sentence(body.detail ?? body.error ?? body.title ?? `The API answered ${response.status}`));
    this.status = response.status;
    this.kind = String(body.type ?? '').split('/').pop();
    this.fields = (body.errors ?? []).map(({ field, detail }) => ({ field, detail: sentence(detail) }));
    this.orderId = body.order_id ?? null;
    this.receiptStatus = body.receipt_status ?? null;
    this.retryAfter = Number.parseInt(response.headers.get('retry-after') ?? '', 10) || 0; // seconds
  }
}

/** Makes a sentence of a detail: the API's details are fragments ("must be a number") that follow a name. */
function sentence(text) {
  return text.replace(/^[a-z]+(?= )/, (word) => word[0].toUpperCase() + word.slice(1)).replace(/[^.!?]$/, '$&.');
}

/** No usable answer came back, so the page cannot know what happened. */
export class Unreachable extends Error {
  constructor() {
    super('The API does not answer.');
  }
}

const listeners = [];
export const onReachable = (listener) => listeners.push(listener);

export const shardMap = () => ask('/api/shards');
export const stats = () => ask('/api/stats', { timeout: 5_000 });
export const order = async (id) => {
  const answer = await ask(`/api/orders/${encodeURIComponent(id)}?progress=true`);
  return answer.order ?? answer;
};
export const receiptUrl = (id) => `/api/orders/${encodeURIComponent(id)}/receipt`;
export const receipt = (id) => ask(receiptUrl(id), { read: 'text' });

export function orders({ limit, user, cursor }) {
  const query = new URLSearchParams({ limit, progress: true });
  if (user) query.set('user_id', user);
  if (cursor) query.set('cursor', cursor);
  return ask(`/api/orders?${query}`);
}

export const config = () => ask('/api/config');
export const trail = (id) => ask(`/api/orders/${encodeURIComponent(id)}/trail`);

export function deadLetters({ limit = 20, before = null } = {}) {
  const query = new URLSearchParams({ limit });
  if (before !== null) query.set('before', before);
  return ask(`/api/dead-letters?${query}`);
}

export const replay = (through) => ask('/api/dead-letters/replay', json('POST', { through }, 60_000));

/** The controls belong to another server, on the reader's machine: without its answer the API may still be up. */
export const controls = (url) => ask(`${url}/controls`, { elsewhere: true, timeout: 5_000 });
export const control = (url, name, running) =>
  ask(`${url}/controls/${encodeURIComponent(name)}`, { elsewhere: true, ...json('PUT', { running }) });

export const place = (body, key) =>
  ask('/api/orders', { method: 'POST', headers: { 'content-type': 'application/json', 'idempotency-key': key }, body });

/** `crypto.randomUUID` exists only on https and localhost; random bytes exist everywhere. */
export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Milliseconds before try number `tries` (from 0): doubling from half a second to 30 s, spread so that pages do not retry at the same time. */
export const backoff = (tries) => Math.min(30_000, 500 * 2 ** tries) * (0.75 + Math.random() / 2);

const json = (method, value, timeout = 15_000) => ({
  method,
  timeout,
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify(value),
});

async function ask(path, { timeout = 15_000, read = 'json', elsewhere = false, ...options } = {}) {
  const reachable = (whether) => elsewhere || listeners.forEach((listener) => listener(whether));
  let response;
  let text;
  try {
    response = await fetch(path, { ...options, cache: 'no-store', signal: AbortSignal.timeout(timeout) });
    text = await response.text();
  } catch {
    reachable(false);
    throw new Unreachable();
  }
  if (response.status === 502 || response.status === 504) {
    reachable(false); // from a proxy, not from the API
    throw new Unreachable();
  }
  reachable(true);
  if (response.ok && read === 'text') return text;
  const answer = parse(text);
  if (response.ok && answer) return answer;
  throw new Problem(response, answer ?? {});
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
