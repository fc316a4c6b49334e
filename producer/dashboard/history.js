// The last five minutes of the feed in bins of two seconds: how many notifications, and how long each took from
// acceptance to notification. Counts and histograms are exact; where the feed was not heard the bins are unknown.

export const BIN = 2_000; // ms
export const BINS = 150;

/** Upper bounds in ms, as the feed has them; the last bin is everything above. */
export const BOUNDS = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000, 10000, 15000, 20000, 30000, 60000, Infinity];

const SLOTS = BINS + 5;
const OUTAGES = 100; // remembered; a stream that breaks off every 3 s has as many in five minutes
const slotOf = new Map(BOUNDS.map((bound, i) => [bound === Infinity ? -1 : bound, i]));

export class History {
  #numbers = new Array(SLOTS).fill(-1); // which bin a slot holds
  #counts = new Float64Array(SLOTS);
  #took = Array.from({ length: SLOTS }, () => new Float64Array(BOUNDS.length));
  #deaf = []; // {from, to} in ms: when the feed was not heard; `to` is null while it lasts
  #ahead = Infinity; // ms this clock is ahead of the server's: the least delay seen
  #begun = Infinity; // ms, when the feed was heard first

  /** Puts a frame where it happened, which after a resumed stream is not where it arrived. */
  take({ count, latency, notifications, arrived }) {
    const notified = Date.parse(notifications.at(-1)?.notified_at);
    this.#ahead = Math.min(this.#ahead, arrived - notified || 0);
    const at = Math.min(arrived, (notified || arrived) + this.#ahead);
    const slot = this.#slot(Math.floor(at / BIN));
    if (slot === null) return;
    this.#counts[slot] += count;
    for (const [bound, size] of latency) {
      const i = slotOf.get(bound);
      if (i !== undefined) this.#took[slot][i] += size;
    }
  }

  #slot(number) {
    const slot = number % SLOTS;
    if (this.#numbers[slot] > number) return null; // older than all that is kept
    if (this.#numbers[slot] !== number) {
      this.#numbers[slot] = number;
      this.#counts[slot] = 0;
      this.#took[slot].fill(0);
    }
    return slot;
  }

  hears(now) {
    this.#begun = Math.min(this.#begun, now);
    const last = this.#deaf.at(-1);
    if (last?.to === null) last.to = now;
  }

  deaf(now) {
    if (now < this.#begun || this.#deaf.at(-1)?.to === null) return;
    this.#deaf = [...this.#deaf, { from: now, to: null }].slice(-OUTAGES);
  }

  /** Nothing was missed after all: the stream went on where it broke off. */
  resumed() {
    this.#deaf.pop();
  }

  /** Between the last frame and now something was missed. */
  missed(from, now) {
    this.#deaf = [...this.#deaf, { from, to: now }].slice(-OUTAGES);
  }

  /** The whole bins up to now, oldest first: `{at, count, took}`, with `count` null where nobody knows. */
  bins(now) {
    const last = Math.floor((now - 400) / BIN) - 1; // frames come up to 200 ms after what they tell of
    return Array.from({ length: BINS }, (_, i) => {
      const number = last - BINS + 1 + i;
      const at = number * BIN;
      const slot = number % SLOTS;
      const known = this.#numbers[slot] === number;
      const deaf = at < this.#begun || this.#deaf.some(({ from, to }) => from < at + BIN && (to ?? Infinity) > at);
      return { at, deaf, count: deaf ? null : known ? this.#counts[slot] : 0, took: known ? this.#took[slot] : null };
    });
  }
}

/** Adds up bins: `{count, seconds, took}` over those that are known. */
export function gather(bins) {
  const known = bins.filter(({ count }) => count !== null);
  const took = new Float64Array(BOUNDS.length);
  for (const bin of known) bin.took?.forEach((size, i) => (took[i] += size));
  return { count: known.reduce((sum, bin) => sum + bin.count, 0), seconds: (known.length * BIN) / 1_000, took };
}

/** The bound below which the part `share` of them lies, or null if there are none. */
export function quantile(took, share) {
  if (!took) return null;
  const total = took.reduce((a, b) => a + b, 0);
  if (total === 0) return null;
  let seen = 0;
  for (let i = 0; i < BOUNDS.length; i += 1) {
    seen += took[i];
    if (seen >= share * total) return BOUNDS[i];
  }
  return Infinity;
}
