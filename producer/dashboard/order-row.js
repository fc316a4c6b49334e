// One order in the list: what was bought, and its journey from the shard to the notification.
// A row is built once and then only changed, so focus and selection survive every refresh.

import { receiptUrl } from './api.js';
import { h, quoted, say } from './dom.js';
import { latency, count, moment, utc } from './format.js';
import { centsOf, formatCents } from './money.js';
import { shardOf } from './shards.js';

const UNSEEN = 'Only notifications that arrive while this page is open are shown here';

/** `{node, update({order, shard, notification, awaited})}`; `openReceipt(id)` is called instead of following the link. */
export function orderRow(first, openReceipt) {
  const { id, user_id, product_name, quantity, price, created_at } = first;
  const unit = centsOf(price);
  const total = unit === null ? null : unit * BigInt(quantity);
  const receipt = h('a', { href: receiptUrl(id), onclick: instead(() => openReceipt(id)) });
  const stored = step();
  const written = step(receipt);
  const published = step();
  const notified = step();
  const node = h(
    'li', { class: 'order' },
    h('time', { datetime: created_at, title: utc(created_at) }, moment(created_at)),
    h('span', { class: 'user' }, quoted(user_id)),
    h('span', { class: 'product' }, quoted(product_name)),
    h('span', { class: 'amount' }, h('span', { class: 'quiet' }, `${count(quantity)} × ${formatCents(unit)} = `), h('b', {}, formatCents(total))),
    h('ol', { class: 'journey', 'aria-label': 'Journey' }, stored.node, written.node, published.node, notified.node),
  );
  return { node, update };

  function update({ order, shard, notification, awaited }) {
    const done = order.receipt_status === 'stored';
    stored.set('done', `Stored on ${shard ?? shardOf(user_id)?.name ?? 'its shard'}`);
    written.set(done ? 'done' : order.receipt_status === 'missing' ? 'lost' : 'waiting');
    say(receipt, done ? 'Receipt' : `Receipt ${order.receipt_status ?? 'pending'}`);
    if (notification) {
      const { partition, offset, published_at, notified_at } = notification;
      published.set('done', `Published ${partition} / ${offset}`, `Kafka partition ${partition}, offset ${offset}, at ${utc(published_at)}`);
      notified.set('done', `Notified in ${latency(notification)}`, utc(notified_at));
    } else if (awaited) {
      published.set('waiting', 'Publishing…');
      notified.set('waiting', 'Not notified yet');
    } else {
      published.set('unseen', 'Published –', UNSEEN);
      notified.set('unseen', 'Notified –', UNSEEN);
    }
  }
}

function step(content = h('span')) {
  const node = h('li', {}, content);
  return {
    node,
    set(state, text, title) {
      node.dataset.state = state;
      if (title) node.title = title;
      else node.removeAttribute('title');
      if (text) say(content, text);
    },
  };
}

/** A plain click does `action`; a click that asks for a new tab is left to the link. */
const instead = (action) => (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  action();
};
