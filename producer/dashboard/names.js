// Names that people chose may be long: shortened where a sentence has to stay readable, whole in the title.

import { h } from './dom.js';

/** At most 40 characters of a name, isolated so that it does not turn the writing direction of the text around it. */
export function named(text) {
  const characters = [...text];
  const short = characters.length > 40;
  return h('bdi', { title: short ? text : null }, short ? `${characters.slice(0, 39).join('')}…` : text);
}
