// The dashboard: starts the sources and hands them to each part. Each part is in a file of its own.
//
// A part is a module with `start(context)`; the context is
//   api       the calls of api.js
//   feed      live notifications: `feed.on('frame' | 'recent' | 'reset' | 'lagged' | 'hello' | 'state', listener)`
//   stats     figures, each second: `stats.on(({ value, at, stale, error }) => …)`
//   config    the features and limits of this installation: `config.on((value) => …)`
//   activity  the activity log: `activity.add({ kind, text })`
// A part that fails to load or to start is named in the log, and the others go on.

import * as activity from './activity.js';
import * as api from './api.js';
import * as config from './config.js';
import * as feed from './feed.js';
import * as stats from './stats.js';

const PARTS = ['connection', 'pipeline', 'plots', 'place', 'orders', 'order-trail', 'dead-letters', 'search', 'burst', 'controls'];

const context = { api, feed, stats, config, activity };

activity.start(context);
await Promise.all(PARTS.map(begin));
config.start();
stats.start();
feed.start();

async function begin(name) {
  try {
    const part = await import(`./${name}.js`);
    await part.start(context);
  } catch (error) {
    activity.add({ kind: 'bad', text: `The part “${name}” of this page could not start. Reload to try again.` });
    console.error(error);
  }
}
