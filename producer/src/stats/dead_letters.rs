//! How many dead letters there are, and how many of them were not replayed. Offsets do not tell, as the ends of transactions
//! have some, too: so each letter is read, once, and its offset remembered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use orderflow_core::Topics;
use orderflow_service::kafka;
use rdkafka::Message;

use super::snapshot::DeadLetterCounts;
use crate::kafka_reader::{Asked, Reader};

/// Letters whose offsets are remembered. With more of them nobody reads a number any more, but a log.
const MOST: usize = 100_000;

pub struct DeadLetters {
    topic: Arc<str>,
    reader: Reader<Known>,
}

/// By partition.
type Known = BTreeMap<i32, Letters>;

#[derive(Default)]
struct Letters {
    /// Rising.
    offsets: Vec<i64>,
    /// The first offset that was not read.
    next: i64,
}

impl DeadLetters {
    pub fn new(settings: &kafka::Settings, group: &str, topics: &Topics) -> Self {
        let reader = Reader::new(settings.consumer(&replay_group(group)));
        Self { topic: topics.dead_letters.as_str().into(), reader }
    }

    pub async fn look(&self, timeout: Duration) -> DeadLetterCounts {
        let topic = self.topic.clone();
        self.reader.ask(timeout, move |asked| ask(asked, &topic)).await.unwrap_or_else(|reason| {
            tracing::debug!(reason, "dead letters are not counted");
            DeadLetterCounts::default()
        })
    }
}

/// The group whose committed offsets say what was replayed; `orderflow-consumer dlq replay` commits them.
fn replay_group(group: &str) -> String {
    format!("{group}.dlq-replay")
}

fn ask(asked: &mut Asked<'_, Known>, topic: &str) -> Result<DeadLetterCounts, String> {
    let count = asked.partitions(topic)?;
    let replayed = asked.committed(topic, count).ok();
    let mut unread = BTreeMap::new();
    for partition in 0..count {
        let (start, end) = asked.extent(topic, partition)?;
        let letters = asked.known.entry(partition).or_default();
        letters.keep_between(start, end);
        unread.insert(partition, (letters.next, end));
    }
    let mut known: usize = asked.known.values().map(|letters| letters.offsets.len()).sum();
    let read = asked.read(topic, &unread, |letters, letter| {
        let of_partition = letters.entry(letter.partition()).or_default();
        of_partition.offsets.push(letter.offset());
        of_partition.next = letter.offset() + 1;
        known += 1;
        known < MOST
    })?;
    if !read {
        // Goes on where it is with the next look.
        return Ok(DeadLetterCounts::default());
    }
    for (partition, (_, end)) in unread {
        asked.known.entry(partition).or_default().next = end;
    }
    let waiting = |(partition, letters): (&i32, &Letters)| {
        let first = replayed.as_ref()?.get(partition).copied().unwrap_or(0);
        Some(letters.offsets.len() - letters.offsets.partition_point(|offset| *offset < first))
    };
    let total = asked.known.values().map(|letters| letters.offsets.len()).sum();
    Ok(DeadLetterCounts { waiting: asked.known.iter().map(waiting).sum(), total: Some(total) })
}

impl Letters {
    /// Forgets what Kafka does not have any more.
    fn keep_between(&mut self, start: i64, end: i64) {
        if self.next > end {
            // The topic was made anew.
            *self = Self::default();
        }
        self.offsets.drain(..self.offsets.partition_point(|offset| *offset < start));
        self.next = self.next.max(start);
    }
}
