//! Reads from Kafka the ends of a topic's logs, how far back they reach, the group's committed offsets, and the records
//! in between.
//!
//! The ends are those of all written records (`read_uncommitted`): a transaction's records are written before its
//! commit returns, but the markers that make them readable may come a moment later. A read waits for that moment.

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

/// Largest difference, in microseconds, between the clocks of the producer that accepted an order, the one that
/// published its event, and the consumer. Synchronized machines are within a second; the margin only costs some
/// reading.
pub const SKEW: i64 = 5 * 60 * 1_000_000;

/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait without any progress. A transaction that its owner left open is aborted after 10 to 20 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

const DEADLINE: Deadline = Deadline::Idle(IDLE_TIMEOUT);

/// Records that are returned at once.
const BATCH: usize = 5000;

/// Offsets by partition.
pub type Offsets = BTreeMap<i32, i64>;

pub struct Kafka {
    topics: Topics,
    /// Reads records and the group's offsets, without joining the group.
    committed: Reader,
    /// Reads the ends of logs.
    written: Reader,
    partitions: BTreeMap<String, i32>,
    /// Times since which each topic retains its records.
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
            let retention = retention(&admin, topic).await.with_context(|| format!("read the retention of {topic}"))?;
            let since = Timestamp::now().unix_microseconds().saturating_sub(retention.saturating_mul(1000));
            kept_since.insert(topic.clone(), Timestamp::from_unix_microseconds(since).unwrap_or(Timestamp::EPOCH));
        }
        // Dropping it joins its threads.
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

/// Reads the retention of a topic, in milliseconds.
async fn retention(admin: &AdminClient<LogContext>, topic: &str) -> anyhow::Result<i64> {
    let options = AdminOptions::new().request_timeout(Some(CALL_TIMEOUT));
    let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await?;
    let resource = described.into_iter().next().context("no answer")?.map_err(KafkaError::AdminOp)?;
    let value = resource.get("retention.ms").and_then(|entry| entry.value.as_deref()).context("no retention.ms")?;
    let milliseconds: i64 = value.parse().with_context(|| format!("read retention.ms {value:?}"))?;
    // -1: for ever.
    Ok(if milliseconds < 0 { i64::MAX } else { milliseconds })
}

impl<'kafka> Log<'kafka> {
    /// Returns the time before which retention may have deleted records.
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
        // Read after the ends: otherwise a record that arrives in between could be missed.
        let count = self.kafka.partitions[self.topic];
        let starts = self.kafka.committed.offsets_since(self.topic, count, milliseconds, DEADLINE)?;
        let ranges = starts.into_iter().map(|(partition, start)| (partition, (start, ends[&partition])));
        Reading::start(self, &ranges.collect())
    }

    /// Waits until every transaction that wrote before `end` has ended.
    fn wait_for_commit(self, partition: i32, end: i64) -> anyhow::Result<()> {
        let (mut progressed, mut before) = (Instant::now(), 0);
        loop {
            let (_, stable) = self.readable(partition)?;
            if stable >= end {
                return Ok(());
            }
            if stable > before {
                (progressed, before) = (Instant::now(), stable);
            }
            if progressed.elapsed() > IDLE_TIMEOUT {
                bail!("{}/{partition}: a transaction at offset {stable} does not end", self.topic);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns the time since which no record is missing from the logs; see [`intact_since`].
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

/// Returns the latest of the logs' oldest records: each log reaches back at least to its oldest record. `None` if a log
/// was emptied, or all are empty. `logs`: the first offset and the oldest record's time, in microseconds.
///
/// Records that were deleted from a log (it starts above 0) are older than the others, but only by their writers'
/// clocks.
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

/// Returns the time at which a record was produced, in microseconds.
pub fn moment_of(record: &BorrowedMessage<'_>) -> i64 {
    record.timestamp().to_millis().unwrap_or_default() * 1000
}

/// A read of a topic's logs, up to the ends that they had at its start.
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

    /// Returns true if all records that are left were produced after `moment`, if clocks agree.
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
        // Retention has deleted records, which may have been written by a clock that was ahead.
        assert_eq!(since(&[(3, Some(7)), (0, Some(9))]), Some(7 + SKEW));
    }

    #[test]
    fn an_emptied_log_and_an_empty_topic_are_never_intact() {
        assert_eq!(intact_since([(0, Some(7)), (3, None)].into_iter()), None);
        assert_eq!(intact_since([(0, None), (0, None)].into_iter()), None);
    }
}
