// Checks an order before it is sent, by the API's rules for each field, and writes the request body by hand: the price is
// sent as the checked text and never as a float.

import { formatCents, parsePrice } from './money.js';

const plain = new Intl.NumberFormat();

/** `{errors, order: {user, product, quantity, cents, body}}`. `errors` holds, for each field (and the total) that breaks a rule,
    `{error, unfinished}`: one sentence, and whether further typing can still fix it. `limits` are GET /api/config's. */
export function parseOrder({ user_id, product_name, quantity, price }, limits) {
  const count = parseQuantity(quantity, limits);
  const unit = parsePrice(price, BigInt(limits.price_cents));
  const found = {
    user_id: checkName(user_id, limits.user_id, 'Enter a user.'),
    product_name: checkName(product_name, limits.product_name, 'Enter a product.'),
    quantity: count,
    price: unit,
  };
  const most = BigInt(limits.total_cents);
  if (!count.error && !unit.error && count.value * unit.cents > most) found.total = { error: `In all at most ${formatCents(most)}.` };
  const errors = Object.fromEntries(Object.entries(found).filter(([, { error }]) => error));
  if (Object.keys(errors).length > 0) return { errors };
  const body =
    `{"user_id":${JSON.stringify(user_id)},"product_name":${JSON.stringify(product_name)},` +
    `"quantity":${count.value},"price":${unit.json}}`;
  return { errors, order: { user: user_id, product: product_name, quantity: count.value, cents: unit.cents, body } };
}

/** Returns the reason why `text` is no valid user, or null. */
export const userError = (text, limits) => checkName(text, limits.user_id, 'Enter a user.').error ?? null;

/** Length is counted in code points, as the server does; half a surrogate pair is no character at all. */
function checkName(text, longest, empty) {
  const length = [...text].length;
  if (length === 0) return { error: empty, unfinished: true };
  if (length > longest) return { error: `At most ${longest} characters; this is ${plain.format(length)}.` };
  if (/[\p{Cc}\p{Cs}]/u.test(text)) return { error: 'Must have no control characters.' };
  return {};
}

/** `{value}` as a BigInt, or `{error, unfinished}`. */
export function parseQuantity(typed, limits) {
  const text = typed.trim();
  if (text === '') return { error: 'Enter a quantity.', unfinished: true };
  if (!/^\d+$/.test(text)) return { error: 'A whole number.' };
  const value = BigInt(text);
  if (value < 1n) return { error: 'At least 1.', unfinished: true };
  if (value > BigInt(limits.quantity)) return { error: `Max. ${plain.format(limits.quantity)}` };
  return { value };
}
