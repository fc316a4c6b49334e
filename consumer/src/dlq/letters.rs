//! The dead letters that Kafka has, read in order per partition, without a group membership.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use orderflow_service::kafka::Quiet;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
};

use super::Names;
use crate::{Settings, topics};

/// Longest wait for one answer of Kafka.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A transaction that a killed replay left open hides which offsets are committed for 10 s, and up to 10 s more.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Letters {
    pub consumer: BaseConsumer<Quiet>,
    pub topic: String,
    partitions: BTreeMap<i32, Extent>,
}

/// Offsets of one partition, as they were when [`Letters::open`] asked.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// The oldest that Kafka has.
    start: i64,
    /// The first that was not replayed; `None` if none ever was.
    replayed: Option<i64>,
    /// Behind the last. Transaction markers have offsets too, so `end - start` says nothing about how many letters there
    /// are.
    end: i64,
}

impl Letters {
    pub fn open(settings: &Settings, names: &Names) -> anyhow::Result<Self> {
        let mut config = settings.kafka.consumer(&names.group);
        config.set("enable.partition.eof", "true");
        let consumer: BaseConsumer<Quiet> =
            config.create_with_context(Quiet::default()).context("make a Kafka client")?;
        let topic = names.topics.dead_letters.clone();
        let count = topics::count(&consumer, &topic)
            .map_err(|reason| anyhow!("{reason} (brokers: {})", settings.kafka.kafka_brokers))?;
        let committed = committed(&consumer, &topic, count as i32)?;
        let mut partitions = BTreeMap::new();
        for (partition, replayed) in committed {
            let (start, end) = consumer
                .fetch_watermarks(&topic, partition, CALL_TIMEOUT)
                .with_context(|| format!("ask for the offsets of {topic}/{partition}"))?;
            partitions.insert(partition, Extent { start, replayed, end });
        }
        Ok(Self { consumer, topic, partitions })
    }

    /// Partition and number of offsets that were deleted by retention before they were replayed.
    pub fn expired(&self) -> Vec<(i32, i64)> {
        let expired = self.partitions.iter().filter_map(|(partition, extent)| {
            Some((*partition, extent.start - extent.replayed?)).filter(|(_, expired)| *expired > 0)
        });
        expired.collect()
    }

    /// Visits the letters that were there at [`Letters::open`], all of them or those not replayed, in order within each
    /// partition, until the visitor breaks.
    pub fn visit(
        &self,
        all: bool,
        mut visitor: impl FnMut(BorrowedMessage<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let starts = self.partitions.iter().map(|(partition, extent)| {
            let start = if all { extent.start } else { extent.replayed.unwrap_or(0).max(extent.start) };
            (*partition, start)
        });
        let starts: Vec<_> = starts.filter(|(partition, start)| *start < self.partitions[partition].end).collect();
        let mut unread: BTreeSet<i32> = starts.iter().map(|(partition, _)| *partition).collect();
        self.assign(&starts)?;
        let mut heard = Instant::now();
        while !unread.is_empty() {
            match self.consumer.poll(Duration::from_secs(1)) {
                Some(Ok(letter)) => {
                    heard = Instant::now();
                    let (partition, offset) = (letter.partition(), letter.offset());
                    let end = self.partitions.get(&partition).map_or(0, |extent| extent.end);
                    if offset < end && unread.contains(&partition) && visitor(letter)?.is_break() {
                        break;
                    }
                    if offset + 1 >= end {
                        unread.remove(&partition);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    heard = Instant::now();
                    unread.remove(&partition);
                }
                Some(Err(error)) if !passes(&error) => return Err(error).context("read dead letters"),
                _ if heard.elapsed() > PATIENCE => bail!("no answer from Kafka for {} s", PATIENCE.as_secs()),
                _ => {}
            }
        }
        self.consumer.unassign().context("stop reading")
    }

    /// The letter at exactly that place.
    pub fn at(&self, partition: i32, offset: i64) -> anyhow::Result<BorrowedMessage<'_>> {
        let nothing = || anyhow!("there is no dead letter at offset {offset} of {}/{partition}", self.topic);
        let extent = self.partitions.get(&partition);
        let extent = extent.ok_or_else(|| anyhow!("{} has no partition {partition}", self.topic))?;
        if !(extent.start..extent.end).contains(&offset) {
            return Err(nothing());
        }
        self.assign(&[(partition, offset)])?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match self.consumer.poll(Duration::from_secs(1)) {
                Some(Ok(letter)) if letter.offset() == offset => return Ok(letter),
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Err(nothing()),
                Some(Err(error)) if !passes(&error) => return Err(error).context("read dead letters"),
                _ => {}
            }
        }
        bail!("no answer from Kafka for {} s", PATIENCE.as_secs())
    }

    fn assign(&self, starts: &[(i32, i64)]) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in starts {
            list.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        self.consumer.assign(&list).context("start reading")
    }
}

/// What was replayed, by partition.
fn committed(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    partitions: i32,
) -> anyhow::Result<BTreeMap<i32, Option<i64>>> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, partitions - 1);
    let deadline = Instant::now() + PATIENCE;
    let committed = loop {
        match consumer.committed_offsets(asked.clone(), CALL_TIMEOUT) {
            Ok(committed) => break committed,
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            Err(error) => return Err(error).context("ask what was replayed"),
        }
    };
    let mut replayed = BTreeMap::new();
    for partition in committed.elements() {
        partition.error().context("ask what was replayed")?;
        let offset = if let Offset::Offset(offset) = partition.offset() { Some(offset) } else { None };
        replayed.insert(partition.partition(), offset);
    }
    Ok(replayed)
}

/// Whether librdkafka mends this by itself.
fn passes(error: &KafkaError) -> bool {
    matches!(
        error,
        KafkaError::MessageConsumption(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}
