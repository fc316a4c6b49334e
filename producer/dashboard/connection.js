// Whether anyone answers, in two words at the top: the API, and the feed.

import { $, say } from './dom.js';

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
    tell('api-state', answers ? 'good' : 'bad', answers ? 'answers' : 'no answer');
  });
  feed.on('state', (state) => tell('feed-state', ...FEED[state]));
}

function tell(id, state, word) {
  const pill = $(id);
  pill.dataset.state = state;
  say(pill.lastElementChild, word);
}
