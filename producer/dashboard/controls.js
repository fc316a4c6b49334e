// The controls of a stack on the reader's own machine, if there is one: they stop and start its parts, each with a note on
// its effect. A control shows only the state that the stack reports.

import { $, h, setText } from './dom.js';

const CALM = 3_000; // ms between two polls
const EAGER = 700; // while a part is between two states
const WORDS = { running: 'running', stopping: 'stopping', stopped: 'off', starting: 'starting' };
const TONES = { running: 'good', stopping: 'waiting', stopped: 'bad', starting: 'waiting' };

const section = $('controls');
const problem = h('p', { class: 'note', role: 'status' });
const list = h('ul', { id: 'controls-list' });

let api;
let activity;
let url;
const rows = new Map(); // name → { node, set, busy }
let timer;
let asking = false;

export function start(context) {
  ({ api, activity } = context);
  section.append(h('p', { class: 'quiet small' }, 'Parts of the stack on this machine. Stop one, place orders, and watch what waits and what goes on. Start it again, and everything that waited happens once.'), list, problem);
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
    if (problem.dataset.from === 'poll') report('');
  } catch (error) {
    rows.forEach(({ set }) => set('unknown'));
    if (!problem.textContent || problem.dataset.from === 'poll') report(explain(error), 'poll');
  }
  asking = false;
  clearTimeout(timer);
  timer = setTimeout(poll, eager ? EAGER : CALM);
}

const explain = (error) => (error instanceof api.Unreachable ? 'The controls do not answer. Is “make up” still running?' : error.message);

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
    setText(state, known ? WORDS[is] : 'unknown');
    button.setAttribute('aria-checked', is === 'running' || is === 'starting');
    const fixed = made.busy || !known || is === 'stopping' || is === 'starting';
    button.setAttribute('aria-disabled', fixed);
    if (note !== undefined) setText(about, note ?? '');
  }
}

async function toggle({ name, title, note }, made, running) {
  if (made.node.querySelector('button').getAttribute('aria-disabled') === 'true') return;
  made.busy = true;
  made.set(running ? 'starting' : 'stopping');
  report('');
  try {
    const { state } = await api.control(url, name, running);
    made.busy = false;
    made.set(state);
    activity.add({ kind: 'info', id: `control-${name}`, text: `${title} was ${running ? 'started: everything that waited for it goes on.' : `stopped. ${note ?? ''}`}`.trim() });
  } catch (error) {
    made.busy = false;
    report(`${title} was not ${running ? 'started' : 'stopped'}. ${explain(error)}`, 'control');
  }
  poll();
}

function report(text, from = '') {
  problem.classList.toggle('error', Boolean(text));
  problem.dataset.from = from;
  setText(problem, text);
}
