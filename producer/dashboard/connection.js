// The states of the API and of the feed, each in a word at the top of the page.

import { $, setText } from './dom.js';

const FEED = {
  connecting: ['waiting', 'connecting'],
  live: ['good', 'live'],
  reconnecting: ['waiting', 'reconnecting'],
  closed: ['bad', 'refused'],
};

let reachable = null;

export function start({ api, feed }) {
  api.onReachable((answers) => {
    if (answers && reachable === false) feed.tryNow();
    reachable = answers;
    show('api-state', answers ? 'good' : 'bad', answers ? 'answers' : 'no answer');
  });
  feed.on('state', (state) => show('feed-state', ...FEED[state]));
}

function show(id, state, word) {
  const pill = $(id);
  pill.dataset.state = state;
  setText(pill.lastElementChild, word);
}
