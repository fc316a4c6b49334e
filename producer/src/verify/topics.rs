//! What Kafka is asked: where a topic's logs end, how far back they reach, what the group has committed, and the records
//! between.
//!
//! Where logs end is asked of all that was written (`read_uncommitted`), since a transaction's records are there before its
//! commit returns, but the markers that make them readable may come a moment later. Then that moment is waited for.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use orderflow_core::{Timestamp, Topics};
use orderflow_service::kafka::{
    self, LogContext,
    reader::{Deadline, Ranges, Reader, Records},
};
use rdkafka::{
    Message,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    error::KafkaError,
    message::BorrowedMessage,
};
use tokio::task::block_in_place;

/// How far clocks may be apart, in microseconds: of the producer that accepted an order, of the one that published its event,
/// of the consumer. Machines that keep time are within a second; the margin costs some reading and nothing else.
pub const SKEW: i64 = 5 * 60 * 1_000_000;

/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait without any progress. A transaction that its owner left open is aborted after 10 s, and up to 10 s more.
const PATIENCE: Duration = Duration::from_secs(60);

const DEADLINE: Deadline = Deadline::Idle(PATIENCE);

/// Records handed over at once.
const BATCH: usize = 5000;

/// Offsets by partition.
pub type Offsets = BTreeMap<i32, i64>;

pub struct Kafka {
    topics: Topics,
    /// Reads, and asks as a member of the group would, without ever being one.
    committed: Reader,
    /// Asks where logs end.
    written: Reader,
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
        let committed = Reader::new(config.clone()).context("make a Kafka client")?;
        config.set("isolation.level", "read_uncommitted");
        let written = Reader::new(config).context("make a Kafka client")?;
        let admin: AdminClient<LogContext> =
            settings.client().create_with_context(LogContext::default()).context("make a Kafka client")?;
        let (mut partitions, mut kept_since) = (BTreeMap::new(), BTreeMap::new());
        for topic in [&topics.orders, &topics.notifications, &topics.dead_letters] {
            partitions.insert(topic.clone(), committed.partitions(topic, DEADLINE)?);
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
}

/// How long a topic keeps its records, in milliseconds.
async fn retention(admin: &AdminClient<LogContext>, topic: &str) -> anyhow::Result<i64> {
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

    /// Returns the offsets behind everything that was written until now.
    pub fn ends(self) -> anyhow::Result<Offsets> {
        let end = |partition| Ok((partition, self.kafka.written.extent(self.topic, partition, DEADLINE)?.1));
        self.partitions().map(end).collect()
    }

    /// Returns the first offset, and the one behind what can be read.
    fn readable(self, partition: i32) -> anyhow::Result<(i64, i64)> {
        Ok(self.kafka.committed.extent(self.topic, partition, DEADLINE)?)
    }

    /// Returns the next offsets of the group; 0 where it has none. Waits until no transaction holds newer ones.
    pub fn committed(self) -> anyhow::Result<Offsets> {
        let count = self.kafka.partitions[self.topic];
        let committed = self.kafka.committed.committed(self.topic, count, DEADLINE)?;
        Ok(self.partitions().map(|partition| (partition, committed.get(&partition).copied().unwrap_or(0))).collect())
    }

    /// Reads everything that was written until now and may belong to orders of `from` and later.
    pub fn read(self, from: Timestamp) -> anyhow::Result<Reading<'kafka>> {
        let ends = self.ends()?;
        for (partition, end) in &ends {
            self.wait_for_commit(*partition, *end)?;
        }
        let milliseconds = (from.unix_microseconds() - SKEW).max(0) / 1000;
        // After the ends: a record that comes in between would be missed by an answer that did not have it.
        let count = self.kafka.partitions[self.topic];
        let starts = self.kafka.committed.offsets_since(self.topic, count, milliseconds, DEADLINE)?;
        let ranges = starts.into_iter().map(|(partition, start)| (partition, (start, ends[&partition])));
        Reading::start(self, &ranges.collect())
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
        let extent = |partition| Ok((partition, self.readable(partition)?));
        let extents: Ranges = self.partitions().map(extent).collect::<anyhow::Result<_>>()?;
        let mut reading = Reading::start(self, &extents)?;
        let mut oldest = BTreeMap::new();
        while reading.records.unread().any(|partition| !oldest.contains_key(&partition)) {
            for (partition, moment) in reading.next(|record| Some((record.partition(), moment_of(record))))? {
                oldest.entry(partition).or_insert(moment);
            }
        }
        Ok(intact_since(extents.into_iter().map(|(partition, (start, _))| (start, oldest.get(&partition).copied()))))
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
    records: Records<'kafka>,
    /// The latest time of a record of each partition, in microseconds.
    latest: BTreeMap<i32, i64>,
}

impl<'kafka> Reading<'kafka> {
    fn start(log: Log<'kafka>, ranges: &Ranges) -> anyhow::Result<Self> {
        let records = log.kafka.committed.read(log.topic, ranges, DEADLINE)?;
        Ok(Self { records, latest: BTreeMap::new() })
    }

    pub fn is_done(&self) -> bool {
        self.records.is_done()
    }

    /// Returns whether all records that are left were produced after `moment`, if clocks agree.
    pub fn has_passed(&self, moment: Timestamp) -> bool {
        let passed =
            |partition| self.latest.get(&partition).is_some_and(|latest| *latest > moment.unix_microseconds() + SKEW);
        self.records.unread().all(passed)
    }

    /// Returns the next records, as `decode` reads them. Blocks.
    pub fn next<T>(&mut self, decode: impl Fn(&BorrowedMessage<'_>) -> Option<T>) -> anyhow::Result<Vec<T>> {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(record) = self.records.next().transpose()? else { break };
            let (partition, moment) = (record.partition(), moment_of(&record));
            batch.extend(decode(&record));
            self.latest.entry(partition).and_modify(|latest| *latest = moment.max(*latest)).or_insert(moment);
        }
        Ok(batch)
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
