//! Replays dead letters: writes each back to the partition that it came from. The same transaction commits the letter's
//! offset and writes a [marker](crate::marker), so that either all of this happens or nothing. Of two replays, the
//! later one fences the earlier.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

use anyhow::{Context, anyhow, bail};
use orderflow_core::Topics;
use orderflow_service::{
    kafka::{
        reader::Deadline,
        transaction::{Cause, Failure, Outgoing, Transactions},
    },
    shutdown::CancellationToken,
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::Consumer,
    message::{OwnedHeaders, OwnedMessage},
};

use crate::{
    DeadLetters, Description, Letters,
    letter::{Source, original_headers},
    marker,
};

/// The most letters of one transaction.
const MOST_LETTERS: usize = 100;
/// The most bytes of keys and values in one transaction, which fit into librdkafka's buffer.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// The options of a replay. It covers the letters that exist when it begins: one that still cannot be read comes back
/// as a new letter, for the next replay.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The most letters to replay.
    pub limit: usize,
    /// The last offset to replay. Needs a topic with one partition.
    pub through: Option<i64>,
    pub deadline: Deadline,
    /// Ends the replay after its current transaction.
    pub stop: CancellationToken,
}

/// A report of a running replay. Letters are reported after their transaction is committed.
#[derive(Debug)]
pub enum Progress<'letter> {
    /// Retention deleted this number of offsets before they were replayed.
    Expired {
        partition: i32,
        offsets: i64,
    },
    Replayed {
        letter: &'letter OwnedMessage,
        source: &'letter Source,
    },
    Skipped {
        letter: &'letter OwnedMessage,
        reason: &'letter str,
    },
}

/// The number of letters that a replay settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub replayed: usize,
    /// Letters that cannot be written back. They stay in the dead-letter topic.
    pub skipped: usize,
}

/// Another replay has started since, in this process or another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another replay has fenced this one. {SAFE}")]
pub struct TakenOver;

const SAFE: &str = "It is safe to run this again: what was replayed is not replayed a second time";

impl DeadLetters {
    /// Replays until all letters of `what` are settled, or until it is stopped.
    pub fn replay(
        &self,
        what: &Replay,
        report: &mut dyn FnMut(Progress<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Outcome> {
        let mut config = self.kafka.transactional_producer(&self.group);
        config.set("message.max.bytes", "2097152");
        // Opened before the committed offsets are read, because this settles an open transaction of an earlier replay.
        let transactions = Transactions::open(&config, what.stop.clone(), |_| {}).map_err(|reason| anyhow!(reason))?;
        let letters = self.open(what.deadline)?;
        if what.through.is_some() {
            letters.only_partition()?;
        }
        for (partition, offsets) in letters.expired() {
            report(Progress::Expired { partition, offsets })?;
        }
        let mut run = Run {
            topics: &self.topics,
            group: &self.group,
            transactions,
            letters: &letters,
            batch: Batch::default(),
            outcome: Outcome::default(),
            report,
        };
        if what.limit > 0 {
            letters.visit(false, |letter| {
                if what.stop.is_cancelled() || what.through.is_some_and(|through| letter.offset() > through) {
                    return Ok(ControlFlow::Break(()));
                }
                run.batch.push(letter.detach());
                if run.batch.is_full() {
                    run.commit()?;
                }
                let replayed = run.outcome.replayed + run.batch.replayable(&self.topics);
                Ok(if replayed >= what.limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        if !what.stop.is_cancelled() {
            run.commit()?;
        }
        Ok(run.outcome)
    }
}

struct Run<'run> {
    topics: &'run Topics,
    group: &'run str,
    transactions: Transactions,
    letters: &'run Letters,
    batch: Batch,
    outcome: Outcome,
    report: &'run mut dyn FnMut(Progress<'_>) -> anyhow::Result<()>,
}

#[derive(Default)]
struct Batch {
    letters: Vec<OwnedMessage>,
    bytes: usize,
}

/// A letter with the record to write back, or with the reason why it cannot be written back.
type Letter = (Result<Original, String>, OwnedMessage);

/// The destination and the headers of a record that is written back.
struct Original {
    source: Source,
    headers: OwnedHeaders,
}

impl Run<'_> {
    /// Settles the gathered letters.
    fn commit(&mut self) -> anyhow::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let letters = batch.letters.into_iter().map(|letter| (original(&letter, self.topics), letter));
        self.settle(letters.collect())
    }

    /// Settles letters in one transaction, then reports them.
    fn settle(&mut self, mut letters: Vec<Letter>) -> anyhow::Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        match self.transact(&letters)? {
            Ok(()) => {}
            // A letter may need more bytes than when it was first written, because it is compressed differently.
            Err(_) if letters.len() > 1 => {
                return letters.into_iter().try_for_each(|letter| self.settle(vec![letter]));
            }
            Err(reason) => {
                letters[0].0 = Err(reason);
                return self.settle(letters);
            }
        }
        for (original, letter) in &letters {
            match original {
                Ok(Original { source, .. }) => {
                    self.outcome.replayed += 1;
                    (self.report)(Progress::Replayed { letter, source })?;
                }
                Err(reason) => {
                    self.outcome.skipped += 1;
                    (self.report)(Progress::Skipped { letter, reason })?;
                }
            }
        }
        Ok(())
    }

    /// Writes back the letters that can be, and commits and marks the offsets of all. The inner error means that Kafka
    /// refused a record as too large, and that no letter was replayed.
    fn transact(&self, letters: &[Letter]) -> anyhow::Result<Result<(), String>> {
        let outgoing = letters.iter().filter_map(|(original, letter)| {
            let Original { source, headers } = original.as_ref().ok()?;
            Some(Outgoing {
                topic: &source.topic,
                partition: source.partition,
                key: letter.key(),
                value: letter.payload(),
                headers: Some(headers.clone()),
            })
        });
        let next: BTreeMap<_, _> =
            letters.iter().map(|(_, letter)| (letter.partition(), letter.offset() + 1)).collect();
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in &next {
            offsets.add_partition_offset(&self.letters.topic, *partition, Offset::Offset(*offset))?;
        }
        let markers = next.into_iter().map(|(partition, offset)| Outgoing {
            topic: &self.letters.topic,
            partition,
            key: None,
            value: None,
            headers: Some(marker::headers(self.group, offset)),
        });
        // The consumer is not a member, so the broker checks no generation. The transactional id fences other replays.
        let group = Arc::new(self.letters.reader.consumer().group_metadata().context("name the group")?);
        match self.transactions.run(outgoing.chain(markers), &offsets, &group) {
            Ok(()) => Ok(Ok(())),
            Err(Failure::Aborted(Cause { reason, too_large_for: Some(_) })) => Ok(Err(reason)),
            Err(Failure::Aborted(Cause { reason, .. })) => bail!("{reason}: these letters were not replayed"),
            Err(Failure::Fenced(_)) => bail!(TakenOver),
            Err(Failure::Broken(reason)) => bail!("{reason}. {SAFE}"),
        }
    }
}

impl Batch {
    fn push(&mut self, letter: OwnedMessage) {
        self.bytes += letter.key().map_or(0, <[u8]>::len) + letter.payload().map_or(0, <[u8]>::len);
        self.letters.push(letter);
    }

    fn is_full(&self) -> bool {
        self.letters.len() >= MOST_LETTERS || self.bytes >= MOST_BYTES
    }

    fn replayable(&self, topics: &Topics) -> usize {
        self.letters.iter().filter(|letter| original(*letter, topics).is_ok()).count()
    }
}

/// Reads the record to write back, or the reason why it cannot be written back. Such a letter is skipped: it stays in
/// its topic, where it can be inspected, and does not block the letters behind it.
fn original<M: Message>(letter: &M, topics: &Topics) -> Result<Original, String> {
    let Description { source, truncated, .. } = Description::read(letter);
    let source = source.ok_or("its headers do not name its source")?;
    if source.topic != topics.orders {
        return Err(format!("it came from another topic, {:?}", source.topic));
    }
    if let Some(missing) = truncated {
        let Source { topic, partition, offset } = source;
        return Err(format!("it lacks {missing}; the whole record was {topic}/{partition}@{offset}"));
    }
    let headers = match letter.headers() {
        Some(headers) => original_headers(Some(headers)).ok_or("a header has a name that is not UTF-8")?,
        None => OwnedHeaders::new(),
    };
    Ok(Original { source, headers })
}

#[cfg(test)]
mod tests {
    use orderflow_core::Timestamp;
    use rdkafka::message::{Header, Headers};

    use super::*;
    use crate::DeadLetter;

    fn letter(topic: &str, limit: usize) -> OwnedMessage {
        let time = rdkafka::Timestamp::CreateTime(1);
        let headers = OwnedHeaders::new().insert(Header { key: "event_id", value: Some("1") });
        let record = OwnedMessage::new(Some(vec![b'{'; 5_000]), None, topic.into(), time, 3, 42, Some(headers));
        let letter = DeadLetter::new(&record, "no", "g", Timestamp::now(), limit);
        let value = letter.value.map(Into::into);
        OwnedMessage::new(value, None, "orders.dlq".into(), time, 1, 7, Some(letter.headers))
    }

    #[test]
    fn a_letter_goes_back_to_its_source_without_our_headers() {
        let original = original(&letter("orders", 10_000), &Topics::named("orders")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(original.source, Source { topic: "orders".into(), partition: 3, offset: 42 });
        assert_eq!(original.headers.iter().map(|header| header.key.to_owned()).collect::<Vec<_>>(), ["event_id"]);
    }

    #[test]
    fn a_letter_that_cannot_go_back_is_skipped_with_the_reason() {
        let topics = Topics::named("orders");
        let reason = |letter: &OwnedMessage| original(letter, &topics).err().unwrap();
        assert!(reason(&letter("others", 10_000)).contains("another topic"));
        assert!(reason(&letter("orders", 4_000)).ends_with("the whole record was orders/3@42"));
        let time = rdkafka::Timestamp::NotAvailable;
        let foreign = OwnedMessage::new(None, None, "orders.dlq".into(), time, 0, 1, None);
        assert!(reason(&foreign).contains("do not name its source"));
    }
}
