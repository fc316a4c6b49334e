// Building and changing the page. Text only ever enters as text nodes, so nothing a user typed can become markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes (`on…` = listeners; null and false are left out) and children (null is left out). */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Sets the text only when it differs: a live region speaks again, and a selection is lost, on every write. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Shows `text` in `node`, or hides it when there is none. */
export function show(node, text) {
  say(node, text ?? '');
  node.hidden = !text;
}

/** What a user typed, kept from turning the writing direction of the text around it. */
export const quoted = (text) => h('bdi', {}, text);
