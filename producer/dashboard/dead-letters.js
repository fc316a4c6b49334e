// Dead letters: events that the consumer could not read, each with its reason, its source and its value. A replay is offered
// only where this installation allows it, after a confirmation, and its result is shown.

import { $, h, setText } from './dom.js';
import { count, stamp } from './format.js';

const PAGE = 20;
const KEPT = 100;
const RETRY = 5_000; // ms after a failure

const list = $('letters-list');
const older = $('letters-older');
const replay = $('letters-replay');
const pill = $('letters-state');
const note = $('letters-note');

let api;
let config;
let activity;
let letters = [];
let total = null;
let waiting = null;
let allowed = null; // as the API reported it
let before = null;
let known = ''; // the figures when the list was last fetched
let asking = false;
let fetchedAt = -Infinity;
let replaying = false;
let failure = null;

export function start(context) {
  ({ api, config, activity } = context);
  older.addEventListener('click', loadOlder);
  replay.addEventListener('click', confirm);
  context.config.on(draw);
  context.stats.on(({ value }) => {
    const figures = value?.dead_letters;
    const now = figures ? `${figures.waiting} ${figures.total}` : '';
    const retry = failure && now !== 'null null' && performance.now() - fetchedAt > RETRY;
    if (now && (now !== known || retry) && !document.hidden) refresh(now);
  });
  refresh('');
}

async function refresh(now) {
  if (asking) return;
  asking = true;
  fetchedAt = performance.now();
  known = now;
  try {
    take(await api.deadLetters({ limit: PAGE }), []);
    failure = null;
  } catch (error) {
    failure = error;
  }
  asking = false;
  draw();
}

async function loadOlder() {
  if (asking) return;
  asking = true;
  setText(older, 'Loading…');
  try {
    take(await api.deadLetters({ limit: PAGE, before }), letters);
    failure = null;
  } catch (error) {
    failure = error;
  }
  asking = false;
  setText(older, 'Load older');
  draw();
}

function take(answer, above) {
  letters = [...above, ...answer.dead_letters];
  ({ waiting, total } = answer);
  allowed = answer.replay;
  before = answer.next_before ?? null;
}

function draw() {
  const some = waiting > 0;
  pill.dataset.state = failure ? 'bad' : some ? 'waiting' : total === null ? 'unseen' : 'good';
  setText(pill, failure ? 'Not loaded' : total === null ? 'Loading' : total === 0 ? 'None' : some ? `${count(waiting)} waiting of ${count(total)}` : `All ${count(total)} replayed`);
  if (failure && !replaying) report(failure.message, true);
  else if (note.classList.contains('error') && note.dataset.from === 'list') report('');
  const may = allowed ?? config.value().dead_letter_replay;
  replay.hidden = !may || !some;
  setText(replay, replaying ? 'Replaying…' : some ? `Replay ${count(waiting)}` : 'Replay');
  replay.setAttribute('aria-disabled', replaying);
  setText($('letters-about'), `Events the consumer could not read. They block nothing and are kept.${some && !may ? ' Replay them with “orderflow-consumer dlq replay”.' : ''}`);
  older.hidden = before === null || letters.length >= KEPT;
  const drawn = new Map([...list.children].map((node) => [node.dataset.offset, node]));
  list.replaceChildren(...letters.map((letter) => item(letter, drawn.get(String(letter.offset)))));
}

/** Only its replay changes a letter; its node stays, so that an open value stays open. */
function item(letter, drawn) {
  const { offset, at, reason, source_topic, source_partition, source_offset, key, value, value_bytes } = letter;
  const node = drawn ?? h(
    'li', { 'data-offset': offset },
    h('p', { class: 'reason' }, quotedText(reason)),
    h('p', { class: 'quiet small' }, stamp(at), ` · from ${source_topic}, partition ${source_partition}, offset ${count(source_offset)} · `, key === null ? 'no key' : 'key ', key === null ? null : h('bdi', { class: 'key clip', title: key }, key), h('span', { class: 'letter-state' })),
    h('details', {}, h('summary', {}, `Value, ${count(value_bytes)} bytes`), h('pre', { tabindex: '0', 'aria-label': 'Value' }, value || '(empty)')),
  );
  setText(node.querySelector('.letter-state'), letter.waiting ? ' · waiting' : ' · replayed');
  node.dataset.state = letter.waiting ? 'waiting' : 'unseen';
  return node;
}

const quotedText = (text) => h('bdi', {}, text);

/** Asks for confirmation before a replay up to the newest letter that is shown, so that no unseen letter is replayed. */
function confirm() {
  if (replaying) return;
  const through = Math.max(...letters.map(({ offset }) => offset));
  const go = h('button', { type: 'submit', value: 'go' }, `Replay ${count(waiting)}`);
  const question = h(
    'dialog', { class: 'card question', 'aria-labelledby': 'question-title' },
    h('form', { method: 'dialog' },
      h('h2', { id: 'question-title' }, 'Replay the waiting dead letters?'),
      h('p', {}, `${count(waiting)} ${waiting === 1 ? 'event goes' : 'events go'} back to ${waiting === 1 ? 'its' : 'their'} topic, exactly once each. An event that the consumer still cannot read comes back as a new dead letter.`),
      h('p', { class: 'answers' }, h('button', { type: 'submit', value: '', autofocus: true, class: 'plain' }, 'Cancel'), go)),
  );
  question.addEventListener('close', () => {
    question.remove();
    if (question.returnValue === 'go') send(through);
    if (!replay.hidden) replay.focus();
  });
  document.body.append(question);
  question.showModal();
}

async function send(through) {
  replaying = true;
  report('Replaying…');
  draw();
  let text;
  let failed = null;
  try {
    const { replayed } = await api.replay(through);
    text = replayed === 0 ? 'No dead letter was waiting any more.' : `Replayed ${count(replayed)}: the consumer reads ${replayed === 1 ? 'it' : 'them'} again.`;
  } catch (error) {
    failed = error;
    text = error.status === 409 ? 'Another replay is in progress.' : error instanceof api.Unreachable ? 'No answer: the dead letters may or may not be replayed. Replaying again is safe: none is replayed twice.' : error.message;
  }
  replaying = false;
  report(text, failed !== null);
  note.dataset.from = 'replay';
  activity.add({ kind: failed ? 'bad' : 'good', id: 'replay', text: `Dead letters: ${text}` });
  await refresh(known);
  if (replay.hidden && (document.activeElement === document.body || document.activeElement === replay)) $('dead-letters-title').focus();
}

function report(text, wrong = false) {
  note.classList.toggle('error', wrong);
  note.dataset.from = 'list';
  setText(note, text);
}
