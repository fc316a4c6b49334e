// How numbers and moments are written, in the reader's language and time zone.

const time = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const plain = new Intl.NumberFormat();

/** A count, or a dash for what nobody knows. */
export const count = (value) => (value === null || value === undefined ? '–' : plain.format(value));

/** The reader's clock time; the day too, unless it is today. */
export function moment(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return '–';
  const today = at.toDateString() === new Date().toDateString();
  return today ? time.format(at) : `${day.format(at)}, ${time.format(at)}`;
}

/** The same instant in UTC with every digit the server gave. */
export const utc = (text) => `${String(text).replace('T', ' ').replace(/(Z|\+00:00)$/, '')} UTC`;

/** From acceptance to notification. Two machines' clocks may disagree by a little: never less than 0 ms. */
export function latency({ accepted_at, notified_at }) {
  const ms = Date.parse(notified_at) - Date.parse(accepted_at);
  return Number.isNaN(ms) ? '–' : `${plain.format(Math.max(0, ms))} ms`;
}
