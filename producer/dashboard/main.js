// The dashboard: starts each part and tells them of one another. What a part does is in its own file.

import * as api from './api.js';
import { $, say } from './dom.js';
import * as feed from './feed.js';
import * as figures from './figures.js';
import { count } from './format.js';
import * as orders from './orders.js';
import * as place from './place.js';
import * as receipt from './receipt.js';
import * as shards from './shards.js';

const FALLBACK = 5_000; // ms between looks at the list while the feed is silent or the list incomplete

const placed = new Set();
let live = false;
let reachable = true;

receipt.start();
orders.start();
figures.start();
place.start((answer) => {
  placed.add(answer.order.id);
  say($('placed'), count(placed.size));
  orders.placed(answer);
});
feed.start({
  onNotification(notification) {
    orders.notified(notification);
    place.notified(notification);
  },
  onReset: orders.reset,
  onLive(whether) {
    live = whether;
    showConnection();
  },
});
learnShards(0);
setInterval(() => (live && orders.complete()) || orders.follow(), FALLBACK);

api.onReachable((answers) => {
  if (answers === reachable) return;
  reachable = answers;
  showConnection();
  if (!answers) return;
  feed.tryNow();
  orders.refresh();
});

async function learnShards(tries) {
  try {
    const answer = await api.shardMap();
    shards.learn(answer.shards);
    figures.expect(answer.shards);
    orders.redraw();
    place.hints();
  } catch {
    setTimeout(learnShards, api.backoff(tries), tries + 1);
  }
}

function showConnection() {
  $('connection').dataset.state = !reachable ? 'bad' : live ? 'good' : 'waiting';
  say($('connection'), !reachable ? 'API unreachable' : live ? 'Feed live' : 'Feed reconnecting…');
}
