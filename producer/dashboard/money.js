// Money as BigInt cents, from text and back: exact at any amount, no float on the way.

const LIMIT = 100_000_000n * 100n; // a unit price is below this many cents, as the API has it

const currency = new Intl.NumberFormat(undefined, { style: 'currency', currency: 'USD', currencyDisplay: 'narrowSymbol' });
const twoDigits = new Intl.NumberFormat(undefined, { minimumIntegerDigits: 2, useGrouping: false });

/** A price someone typed: `{cents, json}` with the JSON number's text, or `{error}` saying which rule it breaks. */
export function parsePrice(typed) {
  const text = typed.trim();
  if (text === '') return { error: 'Enter a price.' };
  const parts = /^(\d*)(?:\.(\d*))?$/.exec(text);
  if (!parts || !/\d/.test(text)) return { error: 'Use digits and a point, as in 149.99.' };
  const [, whole, fraction = ''] = parts;
  if (fraction.length > 2) return { error: 'At most two decimals.' };
  const cents = BigInt(whole || '0') * 100n + BigInt(fraction.padEnd(2, '0'));
  if (cents <= 0n) return { error: 'Must be more than 0.' };
  if (cents >= LIMIT) return { error: 'Must be less than 100,000,000.' };
  return { cents, json: `${cents / 100n}.${String(cents % 100n).padStart(2, '0')}` };
}

/** Cents of a price the API sent. It has at most ten digits, which a JSON number's shortest text gives back exactly. */
export function centsOf(number) {
  const price = parsePrice(String(number));
  return price.error ? null : price.cents;
}

/** `$1,234.56` as the reader writes it. The whole part is formatted as a BigInt and the cents are put in after. */
export function formatCents(cents) {
  if (cents === null) return '–';
  return currency
    .formatToParts(cents / 100n)
    .map((part) => (part.type === 'fraction' ? twoDigits.format(cents % 100n) : part.value))
    .join('');
}
