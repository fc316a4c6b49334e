// The search field: a whole order id finds that order, any other text the orders of the user of that name.

import { $, setText } from './dom.js';
import { count } from './format.js';
import { userError } from './new-order.js';
import * as orderTrail from './order-trail.js';
import { find } from './orders.js';

const PAUSE = 350; // ms without a keystroke that end a word
const ID = /^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$/i;

const field = $('search-text');
const note = $('search-note');

let context;
let typing;
let asked = ''; // the text of the list that is shown

export function start(given) {
  context = given;
  field.addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(search, PAUSE);
  });
  $('search-form').addEventListener('submit', (event) => {
    event.preventDefault();
    search();
    const { id } = parse(field.value);
    if (id) orderTrail.open(id);
  });
  report('The whole user name, or an order id.');
}

function search() {
  clearTimeout(typing);
  const text = field.value;
  if (text === asked) return;
  const error = text && userError(text, context.config.value().limits);
  report(error || 'The whole user name, or an order id.', Boolean(error));
  if (error) return;
  asked = text;
  const query = parse(text);
  find(query, (found, failure) => {
    if (asked !== text || !text) return;
    const more = found >= 25 ? ' or more' : '';
    const what = failure ? failure.message : query.id ? (found ? 'Found. Press Enter for its trail.' : 'No such order.') : `${count(found)}${more} orders of this user.`;
    report(what, Boolean(failure));
    context.activity.announce(what);
  });
}

/** Parses the text into a query: `{}`, `{ id, text }` or `{ user }`. */
function parse(text) {
  const bare = text.trim();
  if (text === '') return {};
  if (!ID.test(bare)) return { user: text };
  const digits = bare.replaceAll('-', '').toLowerCase();
  return { text, id: digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-') };
}

function report(text, wrong = false) {
  note.classList.toggle('error', wrong);
  field.setAttribute('aria-invalid', wrong);
  setText(note, text);
}
