// Money as BigInt cents, from text and back: exact at any amount, no float on the way.

const currency = new Intl.NumberFormat(undefined, { style: 'currency', currency: 'USD', currencyDisplay: 'narrowSymbol' });
const twoDigits = new Intl.NumberFormat(undefined, { minimumIntegerDigits: 2, useGrouping: false });

/** Parses a typed price: `{cents, json}` with the JSON number's text, or `{error, unfinished}` with the rule that it
    breaks, and whether further typing can still fix it. At most `limit` cents (a BigInt), if given. */
export function parsePrice(typed, limit = null) {
  const text = typed.trim();
  if (text === '') return { error: 'Enter a price.', unfinished: true };
  const parts = /^(\d*)(?:\.(\d*))?$/.exec(text);
  if (!parts) return { error: 'Use digits and a point, as in 149.99.' };
  const [, whole, fraction = ''] = parts;
  if (fraction.length > 2) return { error: 'At most two decimals.' };
  const cents = BigInt(whole || '0') * 100n + BigInt(fraction.padEnd(2, '0'));
  if (cents <= 0n) return { error: 'Must be more than 0.', unfinished: true };
  if (limit !== null && cents > limit) return { error: `At most ${formatCents(limit)}.` };
  return { cents, json: `${cents / 100n}.${String(cents % 100n).padStart(2, '0')}` };
}

/** Cents of a price the API sent. It has at most ten digits, which a JSON number's shortest text gives back exactly. */
export const centsOf = (number) => parsePrice(String(number)).cents ?? null;

/** `$1,234.56` as the reader writes it. The whole part is formatted as a BigInt and the cents are put in after. */
export function formatCents(cents) {
  if (cents === null) return '–';
  return currency
    .formatToParts(cents / 100n)
    .map((part) => (part.type === 'fraction' ? twoDigits.format(cents % 100n) : part.value))
    .join('');
}

/** `{unit, total}` of an order as the API shows it, each in cents or null. */
export function amounts({ price, quantity }) {
  const unit = centsOf(price);
  return { unit, total: unit === null ? null : unit * BigInt(quantity) };
}
