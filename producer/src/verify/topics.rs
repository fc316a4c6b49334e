//! What Kafka is asked: where a topic's logs end, how far back they reach, what the group has committed, and the records
//! between.
//!
//! Where logs end is asked of all that was written (`read_uncommitted`), since a transaction's records are there before its
//! commit returns, but the markers that make them readable may come a moment later. Then that moment is waited for.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use orderflow_core::{Timestamp, Topics};
use orderflow_service::kafka::{self, Quiet, Told};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    message::BorrowedMessage,
    topic_partition_list::TopicPartitionListElem,
};
use tokio::task::block_in_place;

/// How far clocks may be apart, in microseconds: of the producer that accepted an order, of the one that published its event,
/// of the consumer. Machines that keep time are within a second; the margin costs some reading and nothing else.
pub const SKEW: i64 = 5 * 60 * 1_000_000;

/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait without any progress. A transaction that its owner left open is aborted after 10 s, and up to 10 s more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Records handed over at once.
const BATCH: usize = 5000;

/// Offsets by partition.
pub type Offsets = BTreeMap<i32, i64>;

pub struct Kafka {
    topics: Topics,
    /// Reads, and asks as a member of the group would, without ever being one.
    committed: BaseConsumer<Quiet>,
    /// Asks where logs end.
    written: BaseConsumer<Quiet>,
    partitions: BTreeMap<String, i32>,
    /// Since when each topic keeps its records.
    kept_since: BTreeMap<String, Timestamp>,
}

/// A topic's logs.
#[derive(Clone, Copy)]
pub struct Log<'kafka> {
    kafka: &'kafka Kafka,
    pub topic: &'kafka str,
}

impl Kafka {
    pub async fn open(settings: &kafka::Settings, topics: &Topics, group: &str) -> anyhow::Result<Self> {
        let mut config = settings.consumer(group);
        config.set("enable.partition.eof", "true");
        let committed: BaseConsumer<Quiet> =
            config.create_with_context(Quiet::default()).context("make a Kafka client")?;
        config.set("isolation.level", "read_uncommitted");
        let written = config.create_with_context(Quiet::default()).context("make a Kafka client")?;
        let admin: AdminClient<Quiet> =
            settings.client().create_with_context(Quiet::default()).context("make a Kafka client")?;
        let (mut partitions, mut kept_since) = (BTreeMap::new(), BTreeMap::new());
        for topic in [&topics.orders, &topics.notifications, &topics.dead_letters] {
            let metadata = kafka::fetch_metadata(&committed, topic, CALL_TIMEOUT)?;
            let count =
                metadata.topics().iter().find(|found| found.error().is_none()).map(|found| found.partitions().len());
            match count {
                Some(count) if count > 0 => partitions.insert(topic.clone(), count as i32),
                _ => bail!("the topic {topic} is not there: run orderflow-provision"),
            };
            let retention = retention(&admin, topic).await.with_context(|| format!("ask what {topic} keeps"))?;
            let since = Timestamp::now().unix_microseconds().saturating_sub(retention.saturating_mul(1000));
            kept_since.insert(topic.clone(), Timestamp::from_unix_microseconds(since).unwrap_or(Timestamp::EPOCH));
        }
        // Its threads are waited for.
        block_in_place(|| drop(admin));
        Ok(Self { topics: topics.clone(), committed, written, partitions, kept_since })
    }

    pub fn orders(&self) -> Log<'_> {
        Log { kafka: self, topic: &self.topics.orders }
    }

    pub fn notifications(&self) -> Log<'_> {
        Log { kafka: self, topic: &self.topics.notifications }
    }

    pub fn dead_letters(&self) -> Log<'_> {
        Log { kafka: self, topic: &self.topics.dead_letters }
    }

    /// Calls until Kafka answers, or not within [`PATIENCE`].
    fn ask<T>(&self, what: &str, mut call: impl FnMut() -> KafkaResult<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match call() {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() >= deadline => {
                    let trouble = self.committed.context().troubles().last();
                    return Err(anyhow!("{what}: {}", kafka::why(&error, trouble.as_ref())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

/// How long a topic keeps its records, in milliseconds.
async fn retention(admin: &AdminClient<Quiet>, topic: &str) -> anyhow::Result<i64> {
    let options = AdminOptions::new().request_timeout(Some(CALL_TIMEOUT));
    let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await?;
    let resource = described.into_iter().next().context("no answer")?.map_err(KafkaError::AdminOp)?;
    let value = resource.get("retention.ms").and_then(|entry| entry.value.as_deref()).context("no retention.ms")?;
    let milliseconds: i64 = value.parse().with_context(|| format!("read retention.ms {value:?}"))?;
    // -1 stands for ever.
    Ok(if milliseconds < 0 { i64::MAX } else { milliseconds })
}

impl<'kafka> Log<'kafka> {
    /// What is older may have been deleted by retention.
    pub fn kept_since(self) -> Timestamp {
        self.kafka.kept_since[self.topic]
    }

    fn partitions(self) -> impl Iterator<Item = i32> {
        0..self.kafka.partitions[self.topic]
    }

    /// Behind everything that was written until now.
    pub fn ends(self) -> anyhow::Result<Offsets> {
        let end = |partition| {
            let what = format!("ask for the end of {}/{partition}", self.topic);
            let ask = || self.kafka.written.fetch_watermarks(self.topic, partition, CALL_TIMEOUT);
            Ok((partition, self.kafka.ask(&what, ask)?.1))
        };
        self.partitions().map(end).collect()
    }

    /// The first offsets, and those behind what can be read.
    fn readable(self, partition: i32) -> anyhow::Result<(i64, i64)> {
        let what = format!("ask for the offsets of {}/{partition}", self.topic);
        self.kafka.ask(&what, || self.kafka.committed.fetch_watermarks(self.topic, partition, CALL_TIMEOUT))
    }

    /// The next offsets of the group; 0 where it has none. Waits until no transaction holds newer ones.
    pub fn committed(self) -> anyhow::Result<Offsets> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(self.topic, 0, self.kafka.partitions[self.topic] - 1);
        let committed = self.kafka.ask("ask what the group has committed", || {
            let committed = self.kafka.committed.committed_offsets(asked.clone(), CALL_TIMEOUT)?;
            committed.elements().iter().try_for_each(TopicPartitionListElem::error)?;
            Ok(committed)
        })?;
        let next = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
        Ok(committed.elements().iter().map(|found| (found.partition(), next(found.offset()))).collect())
    }

    /// Everything that was written until now and may belong to orders of `from` and later.
    pub fn read(self, from: Timestamp) -> anyhow::Result<Reading<'kafka>> {
        let ends = self.ends()?;
        for (partition, end) in &ends {
            self.wait_for_commit(*partition, *end)?;
        }
        let mut times = TopicPartitionList::new();
        let milliseconds = (from.unix_microseconds() - SKEW).max(0) / 1000;
        for partition in self.partitions() {
            times.add_partition_offset(self.topic, partition, Offset::Offset(milliseconds))?;
        }
        // After the ends: a record that comes in between would be missed by an answer that knew of none.
        let found = self.kafka.ask("ask for offsets by time", || {
            let found = self.kafka.committed.offsets_for_times(times.clone(), CALL_TIMEOUT)?;
            found.elements().iter().try_for_each(TopicPartitionListElem::error)?;
            Ok(found)
        })?;
        let starts = found.elements().into_iter().filter_map(|found| match found.offset() {
            Offset::Offset(start) => Some((found.partition(), start)),
            _ => None,
        });
        Reading::start(self, &starts.collect(), ends)
    }

    /// Until every transaction that wrote before `end` has ended.
    fn wait_for_commit(self, partition: i32, end: i64) -> anyhow::Result<()> {
        let (mut heard, mut before) = (Instant::now(), 0);
        loop {
            let (_, stable) = self.readable(partition)?;
            if stable >= end {
                return Ok(());
            }
            if stable > before {
                (heard, before) = (Instant::now(), stable);
            }
            if heard.elapsed() > PATIENCE {
                bail!("{}/{partition}: a transaction is open at offset {stable}, and does not end", self.topic);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Since when no record is missing from the logs; see [`intact_since`].
    pub fn intact_since(self) -> anyhow::Result<Option<Timestamp>> {
        let (mut starts, mut ends) = (Offsets::new(), Offsets::new());
        for partition in self.partitions() {
            let (start, end) = self.readable(partition)?;
            starts.insert(partition, start);
            ends.insert(partition, end);
        }
        let mut reading = Reading::start(self, &starts, ends)?;
        let mut oldest = BTreeMap::new();
        while reading.unread.keys().any(|partition| !oldest.contains_key(partition)) {
            for (partition, moment) in reading.next(|record| Some((record.partition(), moment_of(record))))? {
                oldest.entry(partition).or_insert(moment);
            }
        }
        Ok(intact_since(starts.into_iter().map(|(partition, start)| (start, oldest.get(&partition).copied()))))
    }
}

/// A log reaches back at least to its oldest record, if it has one; all of them, to the latest of those. `None`: not even
/// now. `logs`: the first offset and the oldest record's time, in microseconds.
///
/// What was deleted from a log (it starts above 0) is older than what is left, but only by the clocks of those who wrote.
fn intact_since(logs: impl Iterator<Item = (i64, Option<i64>)>) -> Option<Timestamp> {
    let mut since = None;
    for (start, oldest) in logs {
        match oldest {
            Some(oldest) => since = since.max(Some(if start > 0 { oldest + SKEW } else { oldest })),
            None if start > 0 => return None,
            None => {}
        }
    }
    since.and_then(Timestamp::from_unix_microseconds)
}

/// When a record was produced, in microseconds.
pub fn moment_of(record: &BorrowedMessage<'_>) -> i64 {
    record.timestamp().to_millis().unwrap_or_default() * 1000
}

/// Reads a topic's logs up to where they ended when it was begun.
pub struct Reading<'kafka> {
    log: Log<'kafka>,
    /// Ends of the logs that were not read to theirs.
    unread: Offsets,
    /// Times of the latest records, in microseconds.
    latest: BTreeMap<i32, i64>,
    heard: Instant,
}

impl<'kafka> Reading<'kafka> {
    /// `starts` has no partition that there is nothing to read of.
    fn start(log: Log<'kafka>, starts: &Offsets, mut ends: Offsets) -> anyhow::Result<Self> {
        ends.retain(|partition, end| starts.get(partition).is_some_and(|start| start < end));
        let mut assignment = TopicPartitionList::new();
        for partition in ends.keys() {
            assignment.add_partition_offset(log.topic, *partition, Offset::Offset(starts[partition]))?;
        }
        log.kafka.committed.assign(&assignment).with_context(|| format!("start to read {}", log.topic))?;
        Ok(Self { log, unread: ends, latest: BTreeMap::new(), heard: Instant::now() })
    }

    pub fn is_done(&self) -> bool {
        self.unread.is_empty()
    }

    /// Whether all that is still to come was produced after `moment`, if clocks agree.
    pub fn has_passed(&self, moment: Timestamp) -> bool {
        let passed =
            |partition| self.latest.get(partition).is_some_and(|latest| *latest > moment.unix_microseconds() + SKEW);
        self.unread.keys().all(passed)
    }

    /// Some of the records, as `decode` reads them. Blocks.
    pub fn next<T>(&mut self, decode: impl Fn(&BorrowedMessage<'_>) -> Option<T>) -> anyhow::Result<Vec<T>> {
        let mut batch = Vec::new();
        while !self.is_done() && batch.len() < BATCH {
            match self.log.kafka.committed.poll(Duration::from_millis(100)) {
                Some(Ok(record)) => {
                    self.heard = Instant::now();
                    let (partition, moment) = (record.partition(), moment_of(&record));
                    batch.extend(decode(&record));
                    self.latest.entry(partition).and_modify(|latest| *latest = moment.max(*latest)).or_insert(moment);
                    if self.unread.get(&partition).is_some_and(|end| record.offset() + 1 >= *end) {
                        self.unread.remove(&partition);
                    }
                }
                // All below the end could be read before this began.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.heard = Instant::now();
                    self.unread.remove(&partition);
                }
                Some(Err(error)) if !kafka::passes(&error) => {
                    return Err(error).with_context(|| format!("read {}", self.log.topic));
                }
                Some(Err(_)) | None if self.heard.elapsed() > PATIENCE => {
                    bail!("{}: nothing more could be read for {} s", self.log.topic, PATIENCE.as_secs());
                }
                Some(Err(_)) | None => break,
            }
        }
        Ok(batch)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        // What fails here fails again, and is told, where the next reading starts.
        let _ = self.log.kafka.committed.unassign();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_intact_since_the_latest_of_their_oldest_records() {
        let since = |logs: &[(i64, Option<i64>)]| intact_since(logs.iter().copied()).map(Timestamp::unix_microseconds);
        assert_eq!(since(&[(0, Some(7)), (0, Some(9)), (0, None)]), Some(9));
        // Retention took something: what it took may have been written by a clock that was ahead.
        assert_eq!(since(&[(3, Some(7)), (0, Some(9))]), Some(7 + SKEW));
    }

    #[test]
    fn an_emptied_log_and_an_empty_topic_are_intact_for_nothing() {
        assert_eq!(intact_since([(0, Some(7)), (3, None)].into_iter()), None);
        assert_eq!(intact_since([(0, None), (0, None)].into_iter()), None);
    }
}
