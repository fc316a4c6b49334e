// Notifications of the last five minutes: how many, and how long each took from acceptance to notification. Counts and
// histograms are exact. They are kept by the second, as the server's history has them, and shown in bins of two seconds:
// finer lines would be a pixel apart. A second that neither the server's history nor the feed covers is unknown.
//
// Seconds are the server's, whose clock dates both the notifications and the history. Only `bins` converts to the browser's
// clock, so a better estimate of the difference between the clocks moves no count into another bin.

export const BIN = 2_000; // ms
export const BINS = 150;

/** Upper bounds in ms, as the feed has them; the last bin is everything above. */
export const BOUNDS = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000, 10000, 15000, 20000, 30000, 60000, Infinity];

const SECONDS = BIN / 1_000; // per bin
const ODD = 300_000; // ms between a notification's date and the server's clock, as far as the page knows it
const SLOTS = BINS * SECONDS + 10;
const OUTAGES = 100; // remembered; a stream that is interrupted every 3 s has as many in five minutes
const slotOf = new Map(BOUNDS.map((bound, i) => [bound === Infinity ? -1 : bound, i]));

export class History {
  #numbers = new Array(SLOTS).fill(-1); // which second a slot holds
  #counts = new Float64Array(SLOTS);
  #took = Array.from({ length: SLOTS }, () => new Float64Array(BOUNDS.length));
  #gaps = []; // {from, to} in ms of the server's clock: spans without the feed; `to` is null while one lasts
  #known = Infinity; // ms of the server's clock: start of its history
  #begun = Infinity; // ms of the browser's clock: when the feed was first live
  #ahead = Infinity; // ms that the browser's clock is ahead of the server's: the least delay of a frame
  #guess = Infinity; // the same, estimated from the figures until the first frame arrives

  /** Puts a frame where it happened, which after a resumed stream is not where it arrived. */
  take({ count, latency, notifications, arrived }) {
    const notified = Date.parse(notifications.at(-1)?.notified_at);
    // A notification that is dated far from now counts when it arrived. It says nothing about the server's clock.
    const odd = Number.isNaN(notified) || (Number.isFinite(this.#guess) && Math.abs(arrived - notified - this.#guess) > ODD);
    if (!odd) this.#ahead = Math.min(this.#ahead, arrived - notified);
    this.#add(Math.floor((odd ? this.#server(arrived) : notified) / 1_000), count, latency);
  }

  /**
   * Takes over the server's counts from before this stream, one bin per second from the second `from` on. They replace the
   * counts kept for that time, so nothing counts twice. Older counts stay: a restarted server may know less than this page.
   */
  replace({ from, bins }) {
    this.#numbers = this.#numbers.map((second) => (second >= from ? -1 : second));
    bins.forEach(([count, latency], i) => this.#add(from + i, count, latency));
    const known = from * 1_000;
    this.#known = Math.min(this.#known, known);
    this.#gaps = this.#gaps.filter((span) => span.from < known).map((span) => ({ from: span.from, to: Math.min(span.to ?? known, known) }));
  }

  /** Records that the server's clock showed `server` or later when the browser's clock showed `now`. */
  clock(server, now) {
    if (!Number.isNaN(server)) this.#guess = Math.min(this.#guess, now - server);
  }

  #add(second, count, latency) {
    const slot = this.#slot(second);
    if (slot === null) return;
    this.#counts[slot] += count;
    for (const [bound, size] of latency) {
      const i = slotOf.get(bound);
      if (i !== undefined) this.#took[slot][i] += size;
    }
  }

  #slot(second) {
    const slot = second % SLOTS;
    if (second < 0 || this.#numbers[slot] > second) return null; // older than all that is kept
    if (this.#numbers[slot] !== second) {
      this.#numbers[slot] = second;
      this.#counts[slot] = 0;
      this.#took[slot].fill(0);
    }
    return slot;
  }

  /** Until a frame or the figures show the server's clock, both clocks are assumed to agree. */
  #offset() {
    return [this.#ahead, this.#guess, 0].find(Number.isFinite);
  }

  #server(now) {
    return now - this.#offset();
  }

  connected(now) {
    this.#begun = Math.min(this.#begun, now);
    const last = this.#gaps.at(-1);
    if (last?.to === null) last.to = this.#server(now);
  }

  disconnected(now) {
    if (now < this.#begun || this.#gaps.at(-1)?.to === null) return;
    this.#gaps = [...this.#gaps, { from: this.#server(now), to: null }].slice(-OUTAGES);
  }

  /** Drops the last gap: the stream resumed where it was interrupted, so nothing was missed. */
  resumed() {
    this.#gaps.pop();
  }

  /** Records a gap between the last frame and now. */
  missed(from, now) {
    this.#gaps = [...this.#gaps, { from: this.#server(from), to: this.#server(now) }].slice(-OUTAGES);
  }

  /** The whole bins up to now, oldest first: `{at, count, took}`, with `count` null where it is not known. */
  bins(now) {
    const offset = this.#offset();
    const last = Math.floor((now - offset - 400) / BIN) - 1; // a frame arrives up to 200 ms after its notifications
    return Array.from({ length: BINS }, (_, i) => {
      const at = (last - BINS + 1 + i) * BIN;
      const before = at < this.#known && at + offset < this.#begun;
      const isGap = before || this.#gaps.some(({ from, to }) => from < at + BIN && (to ?? Infinity) > at);
      const slots = Array.from({ length: SECONDS }, (_, j) => at / 1_000 + j).filter((second) => this.#numbers[second % SLOTS] === second).map((second) => second % SLOTS);
      return { at: at + offset, isGap, count: isGap ? null : sum(slots.map((slot) => this.#counts[slot])), took: total(slots.map((slot) => this.#took[slot])) };
    });
  }
}

/** Adds up bins: `{count, seconds, took}` over those that are known. */
export function gather(bins) {
  const known = bins.filter(({ count }) => count !== null);
  return { count: sum(known.map(({ count }) => count)), seconds: known.length * SECONDS, took: total(known.map(({ took }) => took)) };
}

const sum = (numbers) => numbers.reduce((one, other) => one + other, 0);

/** Adds up histograms. */
function total(histograms) {
  const all = new Float64Array(BOUNDS.length);
  for (const histogram of histograms) histogram.forEach((size, i) => (all[i] += size));
  return all;
}

/** The bound below which the part `share` of them lies, or null if there are none. */
export function quantile(took, share) {
  if (!took) return null;
  const all = sum(took);
  if (all === 0) return null;
  let seen = 0;
  for (let i = 0; i < BOUNDS.length; i += 1) {
    seen += took[i];
    if (seen >= share * all) return BOUNDS[i];
  }
  return Infinity;
}
