// Throughput and end-to-end latency of the last five minutes, from the feed's exact counts and histograms, as two charts
// and as a table. A new stream starts with the server's history, so the charts are full at once.

import { Chart, readout } from './chart.js';
import { $, h, paint, setText } from './dom.js';
import { compact, count, millis, moment, rate } from './format.js';
import { BIN, BINS, gather, History, quantile } from './history.js';

const QUANTILES = [['p50', 0.5], ['p95', 0.95], ['p99', 0.99]];
const NOW = 5; // bins that "now" is taken over: 10 s
const ROW = 15; // bins to a row of the table: 30 s

const history = new History();
let lastFrame = Date.now();
let throughput;
let latency;
let bins = [];

export function start({ feed, stats }) {
  throughput = figure('throughput', 'Throughput', ['notifications/s', 'notifications per second'], [['now', 'rate'], ['peak', 'peak'], ['in 5 min', 'sum']], ['rate'], true, readThroughput);
  latency = figure('latency', 'Latency', ['accepted → notified', 'from acceptance to notification'], QUANTILES.map(([name]) => [name, name]), ['p99', 'p95', 'p50'], false, readLatency);
  feed.on('frame', (frame) => {
    history.take(frame);
    lastFrame = frame.arrived;
  });
  // A stream reports that it resumes just after it was opened; until then it counts as a stream with a gap.
  feed.on('hello', ({ resumed, history: counted }) => {
    if (resumed) history.resumed();
    else if (counted) history.replace(counted); // a replica of an older release sends none
    paint(draw);
  });
  stats.on(({ value, at }) => value && history.clock(Date.parse(value.at), at));
  feed.on('lagged', () => history.missed(lastFrame, Date.now()));
  feed.on('state', (state) => (state === 'live' ? history.connected(Date.now()) : history.disconnected(Date.now())));
  setInterval(() => paint(draw), 1_000);
  $('plots-details').addEventListener('toggle', () => paint(drawTable));
  paint(draw);
}

function figure(id, title, [note, spelled], names, lines, area, onRead) {
  const head = h('div', { class: 'plot-head' }, h('h3', {}, title, h('span', { class: 'quiet' }, ` ${note}`)));
  const write = readout(head, names);
  $(id).append(head);
  const chart = new Chart($(id), { label: `${title}: ${spelled}, over the last 5 minutes`, lines, area, onRead, onResize: () => paint(draw) });
  return { chart, write };
}

function draw() {
  if (document.hidden) return;
  bins = history.bins(Date.now());
  const rates = bins.map(({ count: size }) => (size === null ? null : size / (BIN / 1_000)));
  const top = nice(Math.max(...rates));
  throughput.chart.draw(bins, [rates], {
    y: (value) => value / top,
    ticks: [0, 0.5, 1].map((at) => ({ at, text: compact(top * at) })),
  });

  const lines = [0.99, 0.95, 0.5].map((share) => bins.map(({ count: size, took }) => (size ? quantile(took, share) : null)));
  const most = Math.min(60_000, Math.max(100, ...lines[0].filter((value) => value !== null)));
  const decades = Math.ceil(Math.log10(most) - 1e-9);
  latency.chart.draw(bins, lines, {
    y: (value) => Math.min(1, Math.log10(Math.min(value, 100_000)) / decades),
    ticks: Array.from({ length: decades + 1 }, (_, power) => ({ at: power / decades, text: millis(10 ** power) })),
  });
  if (drawnTable !== null && Date.now() - drawnTable > 10_000) drawTable();
}

function readThroughput(bin) {
  if (!throughput) return;
  const all = gather(bins);
  const now = gather(bins.slice(-NOW));
  const peak = Math.max(0, ...bins.map((each) => (each.count ?? 0) / (BIN / 1_000)));
  const value = bin ? (bin.count === null ? null : bin.count / (BIN / 1_000)) : now.seconds ? now.count / now.seconds : null;
  throughput.write([rate(value), all.seconds ? rate(peak) : '–', all.seconds ? count(all.count) : '–'], when(bin));
  throughput.chart.describe(`${spoken(bin)}: ${value === null ? 'not known' : `${rate(value).replace('/s', '')} per second`}. Peak ${rate(peak)}, ${count(all.count)} in 5 minutes.`);
}

function readLatency(bin) {
  if (!latency) return;
  const took = bin ? (bin.count ? bin.took : null) : gather(bins.slice(-NOW)).took;
  const texts = QUANTILES.map(([, share]) => bound(quantile(took, share)));
  latency.write(texts, when(bin));
  latency.chart.describe(texts[0] === '–' ? `${spoken(bin)}: no notifications.` : `${spoken(bin)}: ${QUANTILES.map(([name], i) => `${name} ${texts[i]}`).join(', ')}.`);
}

/** Formats the upper bound of a value: a histogram has no exact values. */
function bound(ms) {
  if (ms === null) return '–';
  return ms === Infinity ? '> 60 s' : `≤ ${millis(ms)}`;
}

const when = (bin) => (bin ? `at ${moment(bin.at)}` : 'last 10 s');
const spoken = (bin) => (bin ? moment(bin.at) : 'Last 10 seconds');

/** The next round number; at least 4, so that silence is a line at the bottom and not noise. */
function nice(value) {
  const least = Math.max(4, value || 0);
  const unit = 10 ** Math.floor(Math.log10(least));
  return unit * [1, 1.5, 2, 3, 4, 6, 8, 10].find((step) => step * unit >= least);
}

let drawnTable = null;

function drawTable() {
  if (!$('plots-details').open) {
    drawnTable = null;
    return;
  }
  drawnTable = Date.now();
  const rows = Array.from({ length: BINS / ROW }, (_, i) => bins.slice(i * ROW, (i + 1) * ROW)).reverse();
  const body = $('plots-table');
  while (body.children.length < rows.length) body.append(h('tr', {}, h('th', { scope: 'row' }), ...Array.from({ length: 5 }, () => h('td'))));
  rows.forEach((row, i) => {
    if (row.length === 0) return;
    const { count: size, seconds, took } = gather(row);
    const texts = [moment(row[0].at), ...(seconds ? [count(size), rate(size / seconds)] : ['–', '–']), ...QUANTILES.map(([, share]) => bound(quantile(took, share)))];
    texts.forEach((text, j) => setText(body.children[i].children[j], text));
  });
}
