// One order in the list: what was bought, and its trail from the shard to the notification.
// A row is built once and then only changed, so focus and selection survive every refresh.

import { h, quoted, setText } from './dom.js';
import { count, millis, stamp, utc } from './format.js';
import { amounts, formatCents } from './money.js';
import { shardOf } from './shards.js';

const RECEIPT = { stored: ['done', 'Receipt'], pending: ['waiting', 'Receipt pending'], missing: ['lost', 'Receipt missing'] };
const PUBLISHED = {
  published: ['done', 'Published', 'The order’s trail shows partition, offset and time'],
  waiting: ['waiting', 'Publishing', 'The event is in the outbox of its shard and waits for Kafka'],
  refused: ['lost', 'Refused', 'Kafka refused the event for good; the shard keeps it in outbox_dead'],
  unknown: ['unseen', 'Published unknown', 'The shard did not answer, or its outbox is too long to search for the event'],
};
const NOTIFIED = {
  notified: ['done', 'Notified', 'The order’s trail shows the time'],
  waiting: ['waiting', 'Not notified yet', 'The consumer makes the notification after the event is in Kafka'],
  refused: ['lost', 'Not notified', 'Kafka refused the event, so there is no notification until the event is requeued'],
  unknown: ['unseen', 'Notified unknown', 'Kafka or the shard did not answer, or the order is too recent'],
};

/** `{node, button, update({order, shard, notification})}`; `open(id)` when the reader picks the row. */
export function orderRow({ id, user_id, product_name, quantity, price, created_at }, open) {
  const { unit, total } = amounts({ price, quantity });
  const stored = step();
  const receipt = step();
  const published = step();
  const notified = step();
  const button = h('button', { type: 'button', class: 'product clip', title: product_name, 'aria-haspopup': 'dialog', onclick: () => open(id) }, quoted(product_name));
  const node = h(
    'li', { class: 'order' },
    stamp(created_at),
    h('span', { class: 'user clip', title: user_id }, quoted(user_id)),
    button,
    h('span', { class: 'amount' }, h('span', { class: 'quiet' }, `${count(quantity)} × ${formatCents(unit)} =`), ' ', h('b', {}, formatCents(total))),
    h('ol', { class: 'trail', 'aria-label': 'Trail', onclick: pick }, stored.node, receipt.node, published.node, notified.node),
  );
  return { node, button, update };

  /** Picks the row on a click on the text of a step, which lies above the button. */
  function pick() {
    button.focus({ preventScroll: true });
    button.click();
  }

  function update({ order, shard, notification }) {
    stored.set('done', `Stored ${shard ?? shardOf(user_id)?.name ?? ''}`.trim());
    receipt.set(...(RECEIPT[order.receipt_status] ?? ['waiting', 'Receipt pending']));
    if (notification) {
      const { partition, offset, accepted_at, published_at, notified_at } = notification;
      published.set('done', `Published ${partition}/${offset}`, `Kafka partition ${partition}, offset ${offset}, at ${utc(published_at)}`);
      const took = millis(Math.max(0, Date.parse(notified_at) - Date.parse(accepted_at))); // two clocks may disagree a little
      notified.set('done', `Notified ${took}`, `${took} after it was accepted, at ${utc(notified_at)}`);
    } else {
      const isNotified = order.notified === 'notified';
      const isRefused = !isNotified && order.published === 'refused';
      // A notified order was published.
      published.set(...(PUBLISHED[isNotified ? 'published' : order.published] ?? PUBLISHED.unknown));
      notified.set(...(NOTIFIED[isRefused ? 'refused' : order.notified] ?? NOTIFIED.unknown));
    }
  }
}

function step() {
  const words = h('span', { class: 'clip' });
  const node = h('li', {}, words);
  return {
    node,
    set(state, text, title) {
      if (node.dataset.state !== state) node.dataset.state = state;
      if (words.title !== (title ?? '')) words.title = title ?? '';
      setText(words, text);
    },
  };
}
