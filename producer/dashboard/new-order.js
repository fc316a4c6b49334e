// What an order must be before it is sent: the API's rules per field, and the request body written by hand,
// because the price goes out as the text that was checked and never as a float.

import { parsePrice } from './money.js';

const MAX_QUANTITY = 2_147_483_647n;

/** `{order: {user, product, quantity, cents, body}}`, or `{errors}` with one sentence per field. */
export function parseOrder({ user_id, product_name, quantity, price }) {
  const count = parseQuantity(quantity);
  const unit = parsePrice(price);
  const found = {
    user_id: nameError(user_id, 100),
    product_name: nameError(product_name, 255),
    quantity: count.error,
    price: unit.error,
  };
  const errors = Object.fromEntries(Object.entries(found).filter(([, error]) => error));
  if (Object.keys(errors).length > 0) return { errors };
  const body =
    `{"user_id":${JSON.stringify(user_id)},"product_name":${JSON.stringify(product_name)},` +
    `"quantity":${count.value},"price":${unit.json}}`;
  return { errors, order: { user: user_id, product: product_name, quantity: count.value, cents: unit.cents, body } };
}

/** Length is counted in code points, as the server does; half a surrogate pair is no character at all. */
function nameError(text, longest) {
  const length = [...text].length;
  if (length === 0) return 'Must not be empty.';
  if (length > longest) return `At most ${longest} characters; this is ${length}.`;
  if (/[\p{Cc}\p{Cs}]/u.test(text)) return 'Must not contain control characters.';
  return null;
}

/** `{value}` as a BigInt, or `{error}`. */
export function parseQuantity(typed) {
  const text = typed.trim();
  if (!/^\d+$/.test(text)) return { error: 'A whole number, 1 or more.' };
  const value = BigInt(text);
  if (value < 1n) return { error: 'At least 1.' };
  if (value > MAX_QUANTITY) return { error: 'At most 2,147,483,647.' };
  return { value };
}
