// The health of each part of the pipeline, from the figures: up, down or unknown, in a word and with the reason.

const GOOD = { state: 'good', word: 'up', reason: null };
const down = (reason) => ({ state: 'bad', word: 'down', reason: reason ?? 'It does not answer.' });
const unknown = (reason) => ({ state: 'unseen', word: 'unknown', reason });

/** Map of key → `{title, state, word, reason}` of the shards, `s3`, `kafka` and `consumer`; empty while nothing is known. */
export function health(value) {
  const parts = new Map();
  if (!value) return parts;
  for (const { name, up, reason } of value.shards) parts.set(name, { title: name, ...(up ? GOOD : down(reason)) });
  parts.set('s3', { title: 'S3', ...(value.s3.up ? GOOD : down(value.s3.reason)) });
  parts.set('kafka', { title: 'Kafka', ...(value.kafka.up ? GOOD : down(value.kafka.reason)) });
  parts.set('consumer', { title: 'Consumer', ...consumer(value) });
  return parts;
}

function consumer({ kafka, consumer: { members } }) {
  if (members === 0) return down('The group has no members: events wait in Kafka.');
  if (members > 0) return GOOD;
  return unknown(kafka.up ? 'Kafka did not report the group.' : 'Only Kafka knows the state of the group.');
}
