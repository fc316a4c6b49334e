// Names that people chose, which may be long: shortened where a sentence has to stay readable, whole in the title.

import { h } from './dom.js';

/** The name, at most 40 characters of it, kept from turning the writing direction of the text around it. */
export function named(text) {
  const characters = [...text];
  const short = characters.length > 40;
  return h('bdi', { title: short ? text : null }, short ? `${characters.slice(0, 39).join('')}…` : text);
}
