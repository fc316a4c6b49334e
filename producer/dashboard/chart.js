// One line chart over the last five minutes, in SVG, so that its colours follow the scheme and its text is text. It can
// be read with the pointer and with the arrow keys; for screen readers it is a slider whose value is the reading.

import { h, mark, s, setText } from './dom.js';
import { BIN, BINS } from './history.js';

const LEFT = 56; // px for the labels
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 22;
const HEIGHT = 176;

export class Chart {
  #plot;
  #svg = s('svg', { height: HEIGHT, 'aria-hidden': 'true' });
  #grid = s('g', { class: 'grid' });
  #gaps = s('g', { class: 'gap' });
  #series;
  #cursor = s('line', { class: 'cursor', y1: TOP, y2: HEIGHT - BOTTOM });
  #width = 0;
  #bins = [];
  #chosen = null; // ms, the start of the bin that is read; null = the newest
  #onRead;

  /** `lines`: class names, first drawn first; `onRead(bin or null)` when another moment is pointed at. */
  constructor(place, { label, lines, area = false, onRead, onResize }) {
    this.#onRead = onRead;
    this.#series = lines.map((name) => ({
      area: area ? s('path', { class: `area ${name}` }) : null,
      line: s('path', { class: `line ${name}` }),
    }));
    this.#svg.append(this.#grid, this.#gaps, ...this.#series.flatMap(({ area: filled, line }) => [filled, line].filter(Boolean)), this.#cursor);
    this.#plot = h('div', {
      class: 'chart', tabindex: 0, role: 'slider', 'aria-label': label, 'aria-orientation': 'horizontal',
      'aria-valuemin': -300, 'aria-valuemax': 0, 'aria-valuenow': 0, 'aria-valuetext': 'Nothing yet',
      onpointermove: ({ clientX }) => this.#choose(this.#at(clientX)),
      onpointerdown: ({ clientX }) => this.#choose(this.#at(clientX)),
      onpointerleave: () => this.#choose(null),
      onblur: () => this.#choose(null),
      onkeydown: (event) => this.#key(event),
    }, this.#svg);
    place.append(this.#plot);
    new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width === this.#width) return;
      this.#width = contentRect.width;
      mark(this.#svg, 'width', this.#width);
      onResize();
    }).observe(this.#plot);
  }

  /** `values[i][j]` of line i at bin j; null = no point there. `y(value)` = 0…1; `ticks` = [{at: 0…1, text}]. */
  draw(bins, values, { y, ticks }) {
    this.#bins = bins;
    if (this.#width === 0) return;
    const bottom = HEIGHT - BOTTOM;
    const py = (share) => Math.round((bottom - share * (bottom - TOP)) * 10) / 10;
    this.#drawGrid(ticks.map(({ at, text }) => ({ py: py(at), text })));
    this.#drawGaps(bottom);
    this.#series.forEach(({ area, line }, i) => {
      const pieces = runs(values[i]).map((run) => run.map((j) => [this.#x(j), py(y(values[i][j]))]));
      mark(line, 'd', pieces.map((points) => `M${points.map(([px, v]) => `${px} ${v}`).join('L')}${points.length === 1 ? 'h.01' : ''}`).join(''));
      if (area) mark(area, 'd', pieces.map((points) => `M${points[0][0]} ${bottom}L${points.map(([px, v]) => `${px} ${v}`).join('L')}L${points.at(-1)[0]} ${bottom}Z`).join(''));
    });
    this.#read();
  }

  /** Sets the text of the slider's value. */
  describe(text) {
    mark(this.#plot, 'aria-valuetext', text);
  }

  #x(j) {
    const room = this.#width - LEFT - RIGHT;
    return Math.round((LEFT + (room * (j + 0.5)) / BINS) * 10) / 10;
  }

  #drawGrid(ticks) {
    const minutes = this.#width < 480 ? [4, 2, 0] : [5, 4, 3, 2, 1, 0];
    const key = `${this.#width}|${ticks.map(({ text, py }) => `${text}@${py}`).join()}`;
    if (this.#grid.dataset.key === key) return;
    this.#grid.dataset.key = key;
    const right = this.#width - RIGHT;
    const room = right - LEFT;
    this.#grid.replaceChildren(
      ...ticks.flatMap(({ py, text }) => [
        s('line', { x1: LEFT, x2: right, y1: py, y2: py }),
        s('text', { x: LEFT - 8, y: py + 4, 'text-anchor': 'end' }, text),
      ]),
      ...minutes.map((minute) => s('text', {
        x: LEFT + room * (1 - minute / 5), y: HEIGHT - 5,
        'text-anchor': minute === 0 ? 'end' : minute === 5 ? 'start' : 'middle',
      }, minute === 0 ? 'now' : `−${minute} min`)),
    );
  }

  #drawGaps(bottom) {
    const spans = runs(this.#bins.map(({ isGap }) => (isGap ? 1 : null)));
    const step = (this.#width - LEFT - RIGHT) / BINS;
    while (this.#gaps.children.length > spans.length) this.#gaps.lastChild.remove();
    while (this.#gaps.children.length < spans.length) {
      this.#gaps.append(s('g', {}, s('rect', { y: TOP, height: bottom - TOP }), s('text', { y: TOP + (bottom - TOP) / 4 + 4, 'text-anchor': 'middle' }, 'no data')));
    }
    spans.forEach((run, i) => {
      const [rect, text] = this.#gaps.children[i].children;
      const [x, width] = [LEFT + run[0] * step, run.length * step];
      mark(rect, 'x', x);
      mark(rect, 'width', width);
      mark(text, 'x', x + width / 2);
      mark(text, 'visibility', width > 60 ? null : 'hidden');
    });
  }

  #at(clientX) {
    const { left } = this.#plot.getBoundingClientRect();
    const j = Math.floor(((clientX - left - LEFT) / (this.#width - LEFT - RIGHT)) * BINS);
    return this.#bins[Math.max(0, Math.min(BINS - 1, j))]?.at ?? null;
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -15, PageUp: 15, Home: -BINS, End: BINS };
    if (event.key === 'Escape') return this.#choose(null);
    if (!(event.key in steps) || this.#bins.length === 0) return;
    event.preventDefault();
    const j = this.#index() + steps[event.key];
    this.#choose(this.#bins[Math.max(0, Math.min(BINS - 1, j))].at);
  }

  #index() {
    if (this.#chosen === null) return BINS - 1;
    return Math.max(0, Math.round((this.#chosen - this.#bins[0].at) / BIN));
  }

  #choose(at) {
    if (at === this.#chosen) return;
    this.#chosen = at;
    this.#read();
  }

  #read() {
    if (this.#bins.length === 0) return;
    const j = this.#index();
    this.#cursor.toggleAttribute('data-on', this.#chosen !== null);
    mark(this.#cursor, 'x1', this.#x(j));
    mark(this.#cursor, 'x2', this.#x(j));
    mark(this.#plot, 'aria-valuenow', (j - BINS + 1) * (BIN / 1_000));
    this.#onRead(this.#chosen === null ? null : this.#bins[j]);
  }
}

/** The indices of neighbours that are not null, in runs. */
function runs(values) {
  const all = [];
  let run = null;
  values.forEach((value, j) => {
    if (value === null) run = null;
    else if (run) run.push(j);
    else all.push((run = [j]));
  });
  return all;
}

/** The text beside a chart, for the moment that is read. */
export function readout(place, names) {
  const values = names.map(() => h('dd', {}, '–'));
  const when = h('span', { class: 'when quiet' });
  place.append(when, h('dl', { class: 'readout' }, ...names.map(([name, kind], i) => h('div', { class: kind }, h('dt', {}, name), values[i]))));
  return (texts, moment) => {
    texts.forEach((text, i) => setText(values[i], text));
    setText(when, moment);
  };
}
