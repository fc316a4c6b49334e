// The lines between the parts of the pipeline, measured from where the layout put them, and the orders that travel along
// them: one dot for each shard of each frame, moved by the compositor and never more than a few at a time.

import { mark, paint, reduced, s, h } from './dom.js';

const ROUND = 8; // px, radius of a bend
const TIP = 5; // px, of an arrow
const DOTS = 16; // at most at the same time
const TRIP = 2_400; // ms

export class Routes {
  #picture;
  #parts;
  #svg = s('svg', { class: 'routes', 'aria-hidden': 'true' });
  #dots = h('div', { class: 'dots', 'aria-hidden': 'true' });
  #lines; // {path, tip, from, to, points}
  #travelling = new Set(); // {way, scale, animation}
  #visible = true;
  #resized;
  #seen;

  constructor(picture, parts) {
    this.#picture = picture;
    this.#parts = parts;
    picture.prepend(this.#svg, this.#dots);
    const { api, homes, s3, kafka, consumer } = parts;
    this.#lines = [
      ...homes.flatMap(({ shard, relay }) => [
        this.#line('in', api, shard),
        this.#line('through', shard, relay),
        this.#line('aside', shard, s3),
        this.#line('out', relay, kafka),
      ]),
      this.#line('last', kafka, consumer),
    ];
    this.#resized = new ResizeObserver(() => paint(this.#measure));
    this.#resized.observe(picture);
    this.#seen = new IntersectionObserver(([entry]) => {
      this.#visible = entry.isIntersecting;
    });
    this.#seen.observe(picture);
  }

  stop() {
    this.#resized.disconnect();
    this.#seen.disconnect();
  }

  /** Gives each line the state of the parts that it joins. */
  update() {
    for (const { node, from, to } of this.#lines) {
      const bad = from.state === 'bad' || to.state === 'bad';
      const unseen = from.state === 'unseen' || to.state === 'unseen';
      mark(node, 'data-state', bad ? 'bad' : unseen ? 'unseen' : 'good');
    }
  }

  /** Shows the way of `size` orders of shard `name` as a dot. */
  send(name, size) {
    if (reduced() || document.hidden || !this.#visible || this.#travelling.size > DOTS - 2) return;
    const home = this.#parts.homes.find((each) => each.name === name);
    if (!home) return;
    const line = (kind, end) => this.#lines.find((each) => each.kind === kind && (!end || each.from === end || each.to === end));
    const entry = line('in', home.shard);
    if (!entry.points) return; // not measured yet
    this.#travel([entry, line('through', home.shard), line('out', home.relay), line('last')], size, TRIP);
    if (this.#parts.s3.state !== 'bad') this.#travel([entry, line('aside', home.shard)], size, TRIP / 2, 'receipt');
  }

  #line(kind, from, to) {
    const path = s('path', { class: 'way' });
    const tip = s('path', { class: 'tip' });
    const node = s('g', { 'data-state': 'unseen' }, path, tip);
    this.#svg.append(node);
    return { kind, from, to, path, tip, node, points: null };
  }

  #measure = () => {
    const frame = this.#picture.getBoundingClientRect();
    const boxes = new Map();
    const box = ({ node }) => {
      if (!boxes.has(node)) {
        const { left, top, width, height } = node.getBoundingClientRect();
        const x = left - frame.left;
        const y = top - frame.top;
        boxes.set(node, { left: x, right: x + width, top: y, bottom: y + height, x: x + width / 2, y: y + height / 2 });
      }
      return boxes.get(node);
    };
    const { homes, kafka } = this.#parts;
    const tall = box(kafka).left < box(homes[0].relay).right; // one below the other, as on a phone
    const between = (box(homes[0].shard).right + box(homes[0].relay).left) / 2;
    for (const line of this.#lines) {
      const [a, b] = [box(line.from), box(line.to)];
      line.points = tall ? tallWay(line.kind, a, b, between, frame.width) : wideWay(line.kind, a, b, between);
      mark(line.path, 'd', rounded(line.points));
      mark(line.tip, 'd', arrow(line.points));
    }
    // A travelling dot goes on from its place, on the moved lines.
    for (const { way, scale, animation } of this.#travelling) animation.effect.setKeyframes(steps(way, scale));
  };

  /** Moves a dot along the lines of `way`, one after the other. */
  #travel(way, size, time, kind = 'event') {
    const dot = h('span', { class: 'dot', 'data-carries': kind });
    const scale = 0.7 + Math.min(1, Math.log10(size + 1) / 4);
    this.#dots.append(dot);
    const animation = dot.animate(steps(way, scale), { duration: time, easing: 'linear' });
    const traveller = { way, scale, animation };
    this.#travelling.add(traveller);
    animation.onfinish = () => {
      dot.remove();
      this.#travelling.delete(traveller);
    };
  }
}

function wideWay(kind, a, b, between) {
  const flat = Math.abs(a.y - b.y) < 2;
  if (kind === 'aside') return [[a.right, a.y], [between, a.y], [between, b.top]];
  if (flat) return [[a.right, a.y], [b.left, a.y]];
  const half = (a.right + b.left) / 2;
  return [[a.right, a.y], [half, a.y], [half, b.y], [b.left, b.y]];
}

function tallWay(kind, a, b, between, width) {
  if (kind === 'in') return [[a.left, a.y], [1, a.y], [1, b.y], [b.left, b.y]];
  if (kind === 'through') return [[a.right, a.y], [b.left, a.y]];
  if (kind === 'aside') return [[a.right, a.y], [between, a.y], [between, b.y], [b.right, b.y]];
  if (kind === 'out') return [[a.right, a.y], [width - 1, a.y], [width - 1, b.y], [b.right, b.y]];
  return [[a.x, a.bottom], [a.x, b.top]];
}

/** A path along `points` with rounded bends. */
function rounded(points) {
  const [[x, y], ...rest] = points;
  let path = `M${x} ${y}`;
  rest.forEach(([px, py], i) => {
    const next = rest[i + 1];
    if (!next) {
      path += `L${px} ${py}`;
      return;
    }
    const [bx, by] = points[i];
    const before = Math.min(ROUND, distance([bx, by], [px, py]) / 2);
    const after = Math.min(ROUND, distance([px, py], next) / 2);
    const [sx, sy] = toward([px, py], [bx, by], before);
    const [ex, ey] = toward([px, py], next, after);
    path += `L${sx} ${sy}Q${px} ${py} ${ex} ${ey}`;
  });
  return path;
}

function arrow(points) {
  const end = points.at(-1);
  const before = points.at(-2);
  const [bx, by] = toward(end, before, TIP);
  const [dx, dy] = [(end[0] - bx) * 0.8, (end[1] - by) * 0.8];
  return `M${bx - dy} ${by + dx}L${end[0]} ${end[1]}L${bx + dy} ${by - dx}`;
}

const distance = ([ax, ay], [bx, by]) => Math.hypot(ax - bx, ay - by);

function toward([ax, ay], [bx, by], length) {
  const whole = distance([ax, ay], [bx, by]) || 1;
  return [ax + ((bx - ax) * length) / whole, ay + ((by - ay) * length) / whole];
}

/** Keyframes along the lines of `way` at an even pace. */
function steps(way, scale) {
  const points = way.flatMap((line) => line.points);
  const marks = [0];
  for (let i = 1; i < points.length; i += 1) marks.push(marks[i - 1] + distance(points[i - 1], points[i]));
  const whole = marks.at(-1) || 1;
  return points.map(([x, y], i) => ({ transform: `translate(${x}px, ${y}px) scale(${scale})`, offset: marks[i] / whole }));
}
