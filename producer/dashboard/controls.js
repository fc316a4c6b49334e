// Switches for the parts of a stack on the reader's own machine, only where there are any: off and on, with what one
// should see. Nothing is assumed: a switch shows the state the controls report.

import { $, h, say } from './dom.js';

const CALM = 3_000; // ms between looks
const EAGER = 700; // while a part is between two states
const WORDS = { running: 'running', stopping: 'stopping', stopped: 'off', starting: 'starting' };
const TONES = { running: 'good', stopping: 'waiting', stopped: 'bad', starting: 'waiting' };

const section = $('controls');
const trouble = h('p', { class: 'note', role: 'status' });
const list = h('ul', { id: 'controls-list' });

let api;
let activity;
let url;
const rows = new Map(); // name → { node, set, busy }
let timer;
let asking = false;

export function start(context) {
  ({ api, activity } = context);
  section.append(h('p', { class: 'quiet small' }, 'Of the stack on this machine. Switch one off, place orders, and watch what waits and what goes on; switch it on again, and everything that waited happens once.'), list, trouble);
  context.config.on(({ controls_url }) => {
    if (!controls_url) return;
    url = controls_url;
    section.hidden = false;
    document.addEventListener('visibilitychange', poll);
    poll();
  });
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  let eager = false;
  try {
    const { parts } = await api.controls(url);
    for (const part of parts) row(part).set(part.state, part.note);
    eager = parts.some(({ state }) => state === 'stopping' || state === 'starting');
    if (trouble.dataset.from === 'poll') tell('');
  } catch (error) {
    rows.forEach(({ set }) => set('unknown'));
    if (!trouble.textContent || trouble.dataset.from === 'poll') tell(silence(error), 'poll');
  }
  asking = false;
  clearTimeout(timer);
  timer = setTimeout(poll, eager ? EAGER : CALM);
}

const silence = (error) => (error instanceof api.Unreachable ? 'The switches do not answer. Does “make up” still run?' : error.message);

function row(part) {
  if (rows.has(part.name)) return rows.get(part.name);
  const state = h('span', { class: 'pill' });
  const title = h('b', { id: `control-${part.name}` }, part.title);
  const about = h('p', { class: 'quiet small', id: `control-${part.name}-note` });
  const button = h('button', { type: 'button', role: 'switch', 'aria-labelledby': title.id, 'aria-describedby': about.id }, h('span', {}));
  const made = { node: h('li', {}, title, state, button, about), set, busy: false };
  button.addEventListener('click', () => toggle(part, made, button.getAttribute('aria-checked') !== 'true'));
  rows.set(part.name, made);
  list.append(made.node);
  return made;

  function set(is, note) {
    const known = is in WORDS;
    state.dataset.state = known ? TONES[is] : 'unseen';
    say(state, known ? WORDS[is] : 'unknown');
    button.setAttribute('aria-checked', is === 'running' || is === 'starting');
    const fixed = made.busy || !known || is === 'stopping' || is === 'starting';
    button.setAttribute('aria-disabled', fixed);
    if (note !== undefined) say(about, note ?? '');
  }
}

async function toggle({ name, title, note }, made, running) {
  if (made.node.querySelector('button').getAttribute('aria-disabled') === 'true') return;
  made.busy = true;
  made.set(running ? 'starting' : 'stopping');
  tell('');
  try {
    const { state } = await api.control(url, name, running);
    made.busy = false;
    made.set(state);
    activity.add({ kind: 'info', id: `control-${name}`, text: `${title} switched ${running ? 'on: what waited for it goes on.' : `off. ${note ?? ''}`}`.trim() });
  } catch (error) {
    made.busy = false;
    tell(`${title} was not switched. ${silence(error)}`, 'switch');
  }
  poll();
}

function tell(text, from = '') {
  trouble.classList.toggle('error', Boolean(text));
  trouble.dataset.from = from;
  say(trouble, text);
}
