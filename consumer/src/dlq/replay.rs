//! `dlq replay`: writes each dead letter back to the partition it came from, and commits its offset in the same
//! transaction: either both happened, or neither. Two replays at once fence each other.

use std::{collections::BTreeMap, io::Write, ops::ControlFlow};

use anyhow::{Context, anyhow};
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
    transaction::{Failure, Outgoing, Transactions},
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
    let mut replay = Replay { names, transactions, letters: &letters, batch: Batch::default(), replayed: 0, skipped: 0 };
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

/// A letter that can be written back.
struct Original {
    source: Source,
    headers: OwnedHeaders,
}

impl Replay<'_> {
    /// Settles the batch in one transaction, then tells of it.
    fn commit(&mut self, out: &mut impl Write) -> anyhow::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.letters.is_empty() {
            return Ok(());
        }
        let originals: Vec<_> = batch.letters.iter().map(|letter| original(letter, &self.names.topics)).collect();
        let outgoing = batch.letters.iter().zip(&originals).filter_map(|(letter, original)| {
            let Original { source, headers } = original.as_ref().ok()?;
            Some(Outgoing {
                topic: &source.topic,
                partition: source.partition,
                key: letter.key(),
                value: letter.payload(),
                headers: Some(headers.clone()),
            })
        });
        let mut offsets = TopicPartitionList::new();
        for (partition, offset) in batch.next_offsets() {
            offsets.add_partition_offset(&self.letters.topic, partition, Offset::Offset(offset))?;
        }
        // Of a consumer that is in no group: no generation is checked. That no second replay runs is the producer's part.
        let group = self.letters.consumer.group_metadata().context("name the group")?;
        self.transactions.run(outgoing, &offsets, &group).map_err(|failure| match failure {
            Failure::Aborted(cause) => anyhow!("{}: these letters were not replayed", cause.reason),
            Failure::Broken(reason) => {
                anyhow!("{reason}: run it again; what was replayed will not be replayed a second time")
            }
        })?;
        for (letter, original) in batch.letters.iter().zip(&originals) {
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

    fn next_offsets(&self) -> BTreeMap<i32, i64> {
        self.letters.iter().map(|letter| (letter.partition(), letter.offset() + 1)).collect()
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
