// How numbers and moments are written, in the reader's language and time zone.

import { h } from './dom.js';

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const plain = new Intl.NumberFormat();
const tenths = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat(undefined, { notation: 'compact', maximumFractionDigits: 1 });

const unknown = (value) => value === null || value === undefined || Number.isNaN(value);

/** A count, or a dash if it is not known; `≈` before an estimate. */
export function count(value, approximate = false) {
  if (unknown(value)) return '–';
  return approximate ? `≈ ${plain.format(value)}` : plain.format(value);
}

/** `12.3K`, where there is little room. */
export const compact = (value) => (unknown(value) ? '–' : short.format(value));

/** `1,234/s`; one decimal below ten. */
export const rate = (value) => (unknown(value) ? '–' : `${value < 10 ? tenths.format(value) : plain.format(Math.round(value))}/s`);

/** `15 ms`, `1.5 s`. */
export function millis(value) {
  if (unknown(value)) return '–';
  return value < 1_000 ? `${plain.format(Math.round(value))} ms` : `${tenths.format(value / 1_000)} s`;
}

/** `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`. */
export function duration(seconds) {
  if (unknown(seconds)) return '–';
  if (seconds < 10) return `${tenths.format(Math.max(0, seconds))} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3_600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${plain.format(Math.floor(whole / 3_600))} h ${Math.floor((whole % 3_600) / 60)} min`;
}

/** The reader's clock time; the day too, unless it is today. */
export function moment(when) {
  const at = new Date(when);
  if (Number.isNaN(at.getTime())) return '–';
  const today = at.toDateString() === new Date().toDateString();
  return today ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
}

/** An instant in UTC, with all digits that the server gave. */
export const utc = (text) => `${String(text).replace('T', ' ').replace(/(Z|\+00:00)$/, '')} UTC`;

/** An element that shows the reader's clock time, with UTC in its title. */
export const stamp = (text) => h('time', { datetime: text, title: utc(text) }, moment(text));

/** The time from acceptance to notification, at least 0 ms: the clocks of two machines may differ a little. */
export function latency({ accepted_at, notified_at }) {
  const ms = Date.parse(notified_at) - Date.parse(accepted_at);
  return Number.isNaN(ms) ? '–' : `${plain.format(Math.max(0, ms))} ms`;
}
