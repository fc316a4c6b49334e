//! `dlq replay`: writes each dead letter back to the partition it came from, and commits its offset in the same
//! transaction: either both happened, or neither. Two replays at once fence each other.

use std::{collections::BTreeMap, io::Write, ops::ControlFlow};

use anyhow::{Context, anyhow, bail};
use orderflow_core::Topics;
use orderflow_service::shutdown::CancellationToken;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::Consumer,
    message::{OwnedHeaders, OwnedMessage},
};

use super::{Names, letters::Letters};
use crate::{
    Settings,
    dead_letter::{Description, Source, original_headers},
    transaction::{Cause, Failure, Outgoing, Transactions},
};

/// Letters of one transaction, and their bytes: what fits librdkafka's buffer.
const MOST_LETTERS: usize = 100;
const MOST_BYTES: usize = 4 * 1024 * 1024;

pub fn run(settings: &Settings, names: &Names, limit: usize, out: &mut impl Write) -> anyhow::Result<()> {
    let mut config = settings.kafka.transactional_producer(&names.group);
    config.set("message.max.bytes", "2097152");
    // Before the committed offsets are read: this settles what an earlier replay left open.
    let transactions = Transactions::open(&config, CancellationToken::new(), |_| {})
        .map_err(|reason| anyhow!("{reason} (brokers: {})", settings.kafka.kafka_brokers))?;
    let letters = Letters::open(settings, names)?;
    let mut replay =
        Replay { names, transactions, letters: &letters, batch: Batch::default(), replayed: 0, skipped: 0 };
    for (partition, expired) in letters.expired() {
        writeln!(out, "{}/{partition}: {expired} offsets expired before they were replayed", letters.topic)?;
    }
    if limit > 0 {
        letters.visit(false, |letter| {
            replay.batch.push(letter.detach());
            if replay.batch.is_full() {
                replay.commit(out)?;
            }
            let pending = replay.batch.replayable(&names.topics);
            Ok(if replay.replayed + pending >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    }
    replay.commit(out)?;
    match (replay.replayed, replay.skipped) {
        (0, 0) => writeln!(out, "nothing to replay in {}", letters.topic)?,
        (replayed, 0) => writeln!(out, "{replayed} replayed")?,
        (replayed, skipped) => writeln!(out, "{replayed} replayed, {skipped} passed over")?,
    }
    Ok(())
}

struct Replay<'run> {
    names: &'run Names,
    transactions: Transactions,
    letters: &'run Letters,
    batch: Batch,
    replayed: usize,
    skipped: usize,
}

#[derive(Default)]
struct Batch {
    letters: Vec<OwnedMessage>,
    bytes: usize,
}

/// A letter, and what to write back or why it cannot be.
type Letter = (Result<Original, String>, OwnedMessage);

/// What is written back.
struct Original {
    source: Source,
    headers: OwnedHeaders,
}

impl Replay<'_> {
    /// Settles what was gathered.
    fn commit(&mut self, out: &mut impl Write) -> anyhow::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let topics = &self.names.topics;
        let letters = batch.letters.into_iter().map(|letter| (original(&letter, topics), letter));
        self.settle(letters.collect(), out)
    }

    /// Settles letters in one transaction, then tells of them.
    fn settle(&mut self, mut letters: Vec<Letter>, out: &mut impl Write) -> anyhow::Result<()> {
        if letters.is_empty() {
            return Ok(());
        }
        match self.transact(&letters)? {
            Ok(()) => {}
            // One of them has grown since it was first written, as it is not compressed the same way.
            Err(_) if letters.len() > 1 => {
                return letters.into_iter().try_for_each(|letter| self.settle(vec![letter], out));
            }
            Err(reason) => {
                letters[0].0 = Err(reason);
                return self.settle(letters, out);
            }
        }
        for (original, letter) in &letters {
            let from = format!("{}/{}@{}", letter.topic(), letter.partition(), letter.offset());
            match original {
                Ok(Original { source, .. }) => {
                    self.replayed += 1;
                    writeln!(out, "{from} -> {}/{}", source.topic, source.partition)?;
                }
                Err(reason) => {
                    self.skipped += 1;
                    writeln!(out, "{from} passed over: {reason}")?;
                }
            }
        }
        Ok(())
    }

    /// Writes back what can be and commits the offsets of all. The inner error: Kafka refuses one as too large, and none
    /// was replayed.
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
        for (partition, offset) in next {
            offsets.add_partition_offset(&self.letters.topic, partition, Offset::Offset(offset))?;
        }
        // Of a consumer that is in no group: no generation is checked. That no second replay runs is the producer's part.
        let group = self.letters.consumer.group_metadata().context("name the group")?;
        match self.transactions.run(outgoing, &offsets, &group) {
            Ok(()) => Ok(Ok(())),
            Err(Failure::Aborted(Cause { reason, too_large_for: Some(_) })) => Ok(Err(reason)),
            Err(Failure::Aborted(Cause { reason, .. })) => bail!("{reason}: these letters were not replayed"),
            Err(Failure::Broken(reason)) => bail!(
                "{reason}. Either another replay has taken over, or Kafka does not answer. It is safe to run this again: \
                 what was replayed is not replayed a second time"
            ),
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

/// What to write back, or why this letter cannot be. It is passed over then: it stays in its topic, where `dlq list --all`
/// and `dlq show` find it, and does not hold up those behind it.
fn original<M: Message>(letter: &M, topics: &Topics) -> Result<Original, String> {
    let Description { source, truncated, .. } = Description::read(letter);
    let source = source.ok_or("its headers do not say where it came from")?;
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
    use crate::dead_letter::DeadLetter;

    fn letter(topic: &str, limit: usize) -> OwnedMessage {
        let time = rdkafka::Timestamp::CreateTime(1);
        let headers = OwnedHeaders::new().insert(Header { key: "event_id", value: Some("1") });
        let record = OwnedMessage::new(Some(vec![b'{'; 5_000]), None, topic.into(), time, 3, 42, Some(headers));
        let letter = DeadLetter::of(&record, "no", "g", Timestamp::now(), limit);
        let value = letter.value.map(Into::into);
        OwnedMessage::new(value, None, "orders.dlq".into(), time, 1, 7, Some(letter.headers))
    }

    #[test]
    fn a_letter_goes_back_to_where_it_came_from_without_our_headers() {
        let original = original(&letter("orders", 10_000), &Topics::named("orders")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(original.source, Source { topic: "orders".into(), partition: 3, offset: 42 });
        assert_eq!(original.headers.iter().map(|header| header.key.to_owned()).collect::<Vec<_>>(), ["event_id"]);
    }

    #[test]
    fn what_cannot_go_back_says_why() {
        let topics = Topics::named("orders");
        let reason = |letter: &OwnedMessage| original(letter, &topics).err().unwrap();
        assert!(reason(&letter("others", 10_000)).contains("another topic"));
        assert!(reason(&letter("orders", 4_000)).ends_with("the whole record was orders/3@42"));
        let time = rdkafka::Timestamp::NotAvailable;
        let foreign = OwnedMessage::new(None, None, "orders.dlq".into(), time, 0, 1, None);
        assert!(reason(&foreign).contains("do not say where"));
    }
}
