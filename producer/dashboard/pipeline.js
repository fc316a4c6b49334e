// The pipeline as a picture: API, shards with their relays, Kafka and consumer, S3 beside them. Each part shows in a
// word whether it is up, and how much waits there for how long. The lines between them are drawn by routes.js.

import { $, h, mark, paint, setText } from './dom.js';
import { compact, count, duration, rate, utc } from './format.js';
import { health } from './health.js';
import { Routes } from './routes.js';
import { range } from './shards.js';

const COUNTED = 10_000; // the API's limit of counts
const WINDOW = 10_000; // ms over which the rates are taken

const picture = $('pipeline-picture');
const ageLine = $('pipeline-age');

let latest = { value: null, at: null, stale: false, error: null };
let reachable = true;
let live = false;
let since = 0; // ms: the frames from then on are all here
let frames = []; // {arrived, shards} of the last WINDOW
let nodes = null; // made when the shards are known
let routes = null;

export function start({ api, feed, stats }) {
  nodes = build([]);
  stats.on((now) => {
    latest = now;
    paint(draw);
  });
  api.onReachable((answers) => {
    if (answers === reachable) return;
    reachable = answers;
    paint(draw);
  });
  feed.on('state', (state) => {
    live = state === 'live';
    paint(draw);
  });
  feed.on('hello', ({ resumed }) => {
    if (!resumed) since = Date.now();
  });
  feed.on('frame', (frame) => {
    const { arrived, shards } = frame;
    frames.push({ arrived, shards });
    if (frames.length > 100) frames.shift();
    for (const name of Object.keys(shards)) routes?.send(name, shards[name]);
  });
  learn(api);
}

/** Learns the shards from the API, unless the figures arrive first. */
async function learn(api) {
  try {
    const { shards } = await api.shardMap();
    expect(shards);
  } catch {
    // The figures have the shards, too.
  }
}

function expect(shards) {
  const names = shards.map(({ name }) => name).join();
  if (nodes.names === names) return;
  nodes = build(shards);
  nodes.names = names;
  paint(draw);
}

function build(shards) {
  routes?.stop();
  const api = part({ key: 'api', title: 'API', figures: ['Orders stored', 'Notified since start'] });
  const homes = shards.map(({ name, users }, index) => ({
    name,
    shard: part({ key: 'shard', row: index, title: name, detail: range(users), figures: ['Orders', 'Rate'] }),
    relay: part({ key: 'relay', row: index, title: 'Relay', detail: name, figures: ['Waiting', 'Oldest'] }),
  }));
  if (homes.length === 0) homes.push(blank(0), blank(1));
  const s3 = part({ key: 's3', title: 'S3', detail: 'receipts', figures: ['Waiting', 'Oldest'] });
  const kafka = part({ key: 'kafka', title: 'Kafka', figures: ['Partitions', 'Dead letters'], extra: lags() });
  const consumer = part({ key: 'consumer', title: 'Consumer', figures: ['Members', 'Lag', 'Notified'] });
  const all = [api, ...homes.flatMap(({ shard, relay }) => [shard, relay]), s3, kafka, consumer];
  const list = h('ul', { class: 'parts', 'aria-label': 'Parts of the pipeline' }, ...all.map(({ node }) => node));
  list.style.setProperty('--shards', homes.length);
  picture.replaceChildren(list);
  routes = new Routes(picture, { api, homes, s3, kafka, consumer });
  return { api, homes, s3, kafka, consumer, names: null };
}

/** Holds the place of a shard until the shards are known. */
const blank = (row) => ({
  name: null,
  shard: part({ key: 'shard', row, title: 'Shard', figures: ['Orders', 'Rate'] }),
  relay: part({ key: 'relay', row, title: 'Relay', figures: ['Waiting', 'Oldest'] }),
});

function part({ key, row = null, title, detail = null, figures, extra = null }) {
  const state = h('span', { class: 'word' }, 'loading');
  const reason = h('p', { class: 'reason' });
  const values = figures.map(() => h('dd', {}, '–'));
  const node = h(
    'li', { class: `part ${key}`, 'data-state': 'unseen' },
    h('h3', {}, h('span', { class: 'clip', title: detail && `${title} ${detail}` }, title, detail && h('span', { class: 'quiet' }, ` ${detail}`)), state),
    h('div', { class: 'inside' }, h('dl', {}, ...figures.map((name, i) => h('div', {}, h('dt', {}, name), values[i]))), extra?.node, reason),
  );
  if (row !== null) node.style.setProperty('--row', row + 2);
  return {
    node,
    extra,
    state: 'unseen',
    /** Sets the state and the figures; with `covers` a reason takes the place of the figures. */
    set({ state: next, word, reason: why }, texts, { covers = false, urgent = null } = {}) {
      this.state = next;
      mark(node, 'data-state', next);
      setText(state, word);
      setText(reason, why ?? '');
      mark(reason, 'title', why || null);
      node.classList.toggle('covered', covers && Boolean(why));
      texts.forEach((text, i) => setText(values[i], text));
      values.forEach((value, i) => value.classList.toggle('urgent', urgent === i));
    },
  };
}

/** One bar for each partition: as high as its lag has digits. */
function lags() {
  const chart = h('div', { class: 'lags', role: 'img', 'aria-label': 'Lag by partition: not known' });
  const bars = [];
  return {
    node: h('div', {}, h('p', { class: 'lags-title', 'aria-hidden': 'true' }, 'Lag by partition'), chart),
    set(partitions) {
      while (bars.length < partitions.length && bars.length < 64) {
        bars.push(h('span'));
        chart.append(bars.at(-1));
      }
      while (bars.length > partitions.length) bars.pop().remove();
      bars.forEach((bar, i) => {
        const { partition, lag, end } = partitions[i];
        bar.style.setProperty('--height', `${lag === null ? 0 : Math.min(100, Math.log10(lag + 1) * 20)}%`);
        mark(bar, 'title', `Partition ${partition}: lag ${count(lag)}, end ${count(end)}`);
      });
      const known = partitions.map(({ partition, lag }) => `${partition}: ${count(lag)}`);
      mark(chart, 'aria-label', known.length ? `Lag by partition, ${known.join(', ')}` : 'Lag by partition: not known');
    },
  };
}

const waiting = (jobs) => (jobs >= COUNTED ? `${count(COUNTED)}+` : count(jobs));

/** Adds up a field of the shards; `partial` if some are down. */
function sum(shards, field) {
  const known = shards.map((shard) => shard[field]).filter((value) => value !== null);
  const total = known.reduce((a, b) => a + b, 0);
  return { total: known.length ? total : null, partial: known.length < shards.length };
}

function draw() {
  const { value, stale } = latest;
  drawAge();
  if (value) expectThenDraw(value, stale);
  else {
    for (const { node } of parts()) node.classList.remove('covered');
    nodes.api.set(apiState(), ['–', '–']);
  }
  picture.classList.toggle('stale', stale && value !== null);
  routes.update();
}

function expectThenDraw(value, stale) {
  const names = value.shards.map(({ name }) => name).join();
  if (nodes.names !== names) return expect(value.shards);
  const states = health(value);
  const of = (key) => (stale ? { state: 'unseen', word: 'unknown', reason: null } : states.get(key));
  const rates = ratesNow();

  const orders = sum(value.shards, 'orders');
  const estimated = value.shards.some((shard) => shard.orders_estimated);
  const total = orders.total === null ? '–' : `${orders.partial ? '≥ ' : ''}${count(orders.total, estimated)}`;
  nodes.api.set(apiState(), [total, count(value.notifications.total)]);

  value.shards.forEach((shard, i) => {
    const { shard: home, relay } = nodes.homes[i];
    const state = of(shard.name);
    home.set(state, [count(shard.orders, shard.orders_estimated), rate(rates && (rates.get(shard.name) ?? 0))], { covers: true });
    relay.set(relayState(state, of('kafka'), shard), [waiting(shard.outbox), duration(shard.outbox_age_seconds)], { covers: state.state === 'bad', urgent: shard.outbox_age_seconds > 5 ? 1 : null });
  });

  const jobs = sum(value.shards, 'receipt_jobs');
  const ages = value.shards.map((shard) => shard.receipt_jobs_age_seconds).filter((age) => age !== null);
  const most = value.shards.some((shard) => shard.receipt_jobs >= COUNTED) || (jobs.partial && jobs.total !== null);
  nodes.s3.set(of('s3'), [jobs.total === null ? '–' : `${most ? '≥ ' : ''}${count(jobs.total)}`, ages.length ? duration(Math.max(...ages)) : '–'], { urgent: Math.max(0, ...ages) > 60 ? 1 : null });

  const letters = value.dead_letters.waiting;
  nodes.kafka.set(of('kafka'), [value.partitions.length ? count(value.partitions.length) : '–', count(letters)], { covers: true, urgent: letters > 0 ? 1 : null });
  nodes.kafka.extra.set(value.partitions);
  const { members, lag } = value.consumer;
  nodes.consumer.set(of('consumer'), [count(members), lag < 10_000 ? count(lag) : compact(lag), rate(stale ? null : value.notifications.per_second)]);
}

const parts = () => [nodes.api, ...nodes.homes.flatMap(({ shard, relay }) => [shard, relay]), nodes.s3, nodes.kafka, nodes.consumer];

function apiState() {
  if (!reachable) return { state: 'bad', word: 'no answer', reason: null };
  if (!latest.value && !latest.error) return { state: 'unseen', word: 'loading', reason: null };
  return { state: 'good', word: 'up', reason: null };
}

/** A relay is a task of the producer: it waits while its shard or Kafka is down. */
function relayState(shard, kafka, { dead_events: refused }) {
  if (shard.state === 'bad') return { state: 'waiting', word: 'waits', reason: 'Its shard is down. Nothing is lost: the events wait in it.' };
  if (kafka.state === 'bad') return { state: 'waiting', word: 'waits', reason: null };
  if (shard.state === 'good' && refused > 0) return { state: 'waiting', word: `up, ${count(refused)} refused`, reason: null };
  if (shard.state === 'good') return { state: 'good', word: 'up', reason: null };
  return { state: 'unseen', word: 'unknown', reason: null };
}

/** Returns notifications per second by shard, or null while the feed is not live. */
function ratesNow() {
  const now = Date.now();
  const from = Math.max(now - WINDOW, since);
  frames = frames.filter(({ arrived }) => arrived >= from);
  if (!live) return null;
  const seconds = Math.max(1_000, now - from) / 1_000;
  const rates = new Map();
  for (const { shards } of frames) for (const [name, size] of Object.entries(shards)) rates.set(name, (rates.get(name) ?? 0) + size / seconds);
  return rates;
}

function drawAge() {
  const { value, at, stale, error } = latest;
  const why = !reachable ? 'the API does not answer' : error ? 'the figures cannot be loaded' : null;
  if (stale && value) setText(ageLine, `${duration((Date.now() - at) / 1_000)} old: ${why ?? 'the figures are late'}`);
  else if (value) setText(ageLine, 'Rates over the last 10 s');
  else setText(ageLine, why ? `No figures yet: ${why}` : 'Loading the figures…');
  mark(ageLine, 'data-state', (stale || why) && (stale || !value) ? 'waiting' : 'unseen');
  mark(ageLine, 'title', value ? `Figures of ${utc(value.at)}` : null);
}
