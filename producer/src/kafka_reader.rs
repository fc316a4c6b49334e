//! One client of Kafka that is kept for questions that are asked again and again, each with a deadline. It is a member of no
//! group, and asked by one at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, TryLockError},
    time::{Duration, Instant},
};

use orderflow_service::kafka::{self, Quiet, Told, Trouble};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
};

/// What a question may take beyond its deadline: a call of librdkafka sees it a little late.
const GRACE: Duration = Duration::from_millis(500);

pub struct Reader<Known> {
    config: Arc<ClientConfig>,
    kept: Arc<Mutex<Kept<Known>>>,
}

#[derive(Default)]
struct Kept<Known> {
    consumer: Option<BaseConsumer<Quiet>>,
    known: Known,
}

/// A question that is being asked.
pub struct Asked<'reader, Known> {
    pub consumer: &'reader BaseConsumer<Quiet>,
    /// What was learned from the questions before.
    pub known: &'reader mut Known,
    deadline: Instant,
}

impl<Known: Default + Send + 'static> Reader<Known> {
    /// A reader whose clients are made with `config`. If that names a group, its committed offsets can be asked for.
    pub fn new(mut config: ClientConfig) -> Self {
        config.set("enable.partition.eof", "true");
        Self { config: Arc::new(config), kept: Arc::default() }
    }

    /// The answer to `question`, or why there is none. `question` keeps to the deadline itself.
    pub async fn ask<T: Send + 'static>(
        &self,
        timeout: Duration,
        question: impl FnOnce(&mut Asked<'_, Known>) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (config, kept, deadline) = (self.config.clone(), self.kept.clone(), Instant::now() + timeout);
        let asking = tokio::task::spawn_blocking(move || ask(&config, &kept, deadline, question));
        match tokio::time::timeout(timeout + GRACE, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err("no answer in time".to_owned()),
        }
    }
}

fn ask<Known, T>(
    config: &ClientConfig,
    kept: &Mutex<Kept<Known>>,
    deadline: Instant,
    question: impl FnOnce(&mut Asked<'_, Known>) -> Result<T, String>,
) -> Result<T, String> {
    let mut kept = match kept.try_lock() {
        Ok(kept) => kept,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        // A question before this one overran its deadline.
        Err(TryLockError::WouldBlock) => return Err("no answer in time".to_owned()),
    };
    let Kept { consumer, known } = &mut *kept;
    let made = match consumer.take() {
        Some(made) => made,
        None => config.create_with_context(Quiet::default()).map_err(|error| error.to_string())?,
    };
    let answer = question(&mut Asked { consumer: &made, known, deadline });
    // What a client was made with stays: it never reads its CA file again, which may have been mended.
    let is_outdated = answer.is_err() && made.context().troubles().last() == Some(Trouble::Certificate);
    *consumer = (!is_outdated).then_some(made);
    answer
}

impl<Known> Asked<'_, Known> {
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Number of the topic's partitions. The first question: its error says best why Kafka cannot be used.
    pub fn partitions(&self, topic: &str) -> Result<i32, String> {
        let metadata = kafka::fetch_metadata(self.consumer, topic, self.left()).map_err(|error| error.to_string())?;
        let found = metadata.topics().iter().find(|found| found.error().is_none() && !found.partitions().is_empty());
        let missing = || format!("the topic {topic} is not there: run orderflow-provision");
        found.map(|found| found.partitions().len() as i32).ok_or_else(missing)
    }

    /// The first offset, and the one behind what can be read.
    pub fn extent(&self, topic: &str, partition: i32) -> Result<(i64, i64), String> {
        self.consumer.fetch_watermarks(topic, partition, self.left()).map_err(|error| error.to_string())
    }

    /// The first offsets since then, in Unix milliseconds, of the partitions that have any.
    pub fn since(&self, topic: &str, partitions: i32, milliseconds: i64) -> Result<BTreeMap<i32, i64>, String> {
        let mut times = TopicPartitionList::new();
        for partition in 0..partitions {
            let time = Offset::Offset(milliseconds.max(0));
            times.add_partition_offset(topic, partition, time).map_err(|error| error.to_string())?;
        }
        offsets(&self.consumer.offsets_for_times(times, self.left()).map_err(|error| error.to_string())?)
    }

    /// The next offsets of the group, of the partitions that it has one of.
    pub fn committed(&self, topic: &str, partitions: i32) -> Result<BTreeMap<i32, i64>, String> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, partitions - 1);
        let committed = self.consumer.committed_offsets(asked, self.left()).map_err(|error| error.to_string())?;
        offsets(&committed)
    }

    /// Reads each partition from its first offset to before its second, until `visit` says that it is enough. True: there is
    /// nothing left to read; false: the time was over, or it was enough.
    pub fn read(
        &mut self,
        topic: &str,
        extents: &BTreeMap<i32, (i64, i64)>,
        mut visit: impl FnMut(&mut Known, &BorrowedMessage<'_>) -> bool,
    ) -> Result<bool, String> {
        let (mut unread, mut assignment) = (BTreeMap::new(), TopicPartitionList::new());
        for (partition, (start, end)) in extents.iter().filter(|(_, (start, end))| start < end) {
            unread.insert(*partition, *end);
            let start = Offset::Offset(*start);
            assignment.add_partition_offset(topic, *partition, start).map_err(|error| error.to_string())?;
        }
        if unread.is_empty() {
            return Ok(true);
        }
        self.consumer.assign(&assignment).map_err(|error| error.to_string())?;
        let read = loop {
            match self.consumer.poll(kafka::poll_timeout(self.left())) {
                Some(Ok(record)) => {
                    let (partition, offset) = (record.partition(), record.offset());
                    let Some(end) = unread.get(&partition).copied() else { continue };
                    if offset < end && !visit(self.known, &record) {
                        break Ok(false);
                    }
                    if offset + 1 >= end {
                        unread.remove(&partition);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    unread.remove(&partition);
                }
                Some(Err(error)) if kafka::passes(&error) && !self.left().is_zero() => {}
                Some(Err(error)) => break Err(error.to_string()),
                None => break Ok(false),
            }
            if unread.is_empty() {
                break Ok(true);
            }
        };
        let _ = self.consumer.unassign();
        read
    }
}

/// Of the partitions that have one.
fn offsets(list: &TopicPartitionList) -> Result<BTreeMap<i32, i64>, String> {
    let mut offsets = BTreeMap::new();
    for found in list.elements() {
        found.error().map_err(|error| error.to_string())?;
        if let Offset::Offset(offset) = found.offset() {
            offsets.insert(found.partition(), offset);
        }
    }
    Ok(offsets)
}
