// Building and changing the page. Text only ever enters as text nodes, so nothing a user typed can become markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes (`on…` = listeners; null and false are left out) and children (null is left out). */
export const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);

/** Builds an SVG element likewise. */
export const s = (tag, attributes = {}, ...children) =>
  build(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Sets the text only when it differs: a live region speaks again, and a selection is lost, on every write. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets or removes an attribute, only when it differs: each write costs a style pass. */
export function mark(node, name, value) {
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Shows `text` in `node`, or hides it when there is none. */
export function show(node, text) {
  setText(node, text ?? '');
  node.hidden = !text;
}

/** Text that a user typed, isolated so that it does not turn the writing direction of the text around it. */
export const quoted = (text) => h('bdi', {}, text);

const wanted = new Set();

/** Runs `draw` in the next animation frame, once however often it is called; a hidden page draws when it is visible again. */
export function paint(draw) {
  if (wanted.size === 0) requestAnimationFrame(drawAll);
  wanted.add(draw);
}

function drawAll() {
  const draws = [...wanted];
  wanted.clear();
  for (const draw of draws) {
    try {
      draw();
    } catch (error) {
      console.error(error); // an error of one part leaves the others on the page
    }
  }
}

const motion = matchMedia('(prefers-reduced-motion: reduce)');
export const reduced = () => motion.matches;
