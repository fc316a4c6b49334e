//! The dead letters that Kafka has, read in order per partition, without a group membership.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use orderflow_service::kafka::{self, Quiet, Told, count_partitions, passes};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    message::BorrowedMessage,
};

use crate::{DeadLetters, Patience, marker};

/// The letters as they were when [`DeadLetters::open`] asked; what comes later is in none of its answers.
pub struct Letters {
    pub(crate) consumer: BaseConsumer<Quiet>,
    pub topic: String,
    pub(crate) partitions: BTreeMap<i32, Extent>,
    patience: Patience,
}

/// Offsets of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The oldest that Kafka has.
    pub(crate) start: i64,
    /// The first that was not replayed; `None` if none ever was, as far as Kafka still tells.
    pub(crate) replayed: Option<i64>,
    /// Behind the last. Transaction markers have offsets too, so `end - start` says nothing about how many letters there
    /// are.
    pub(crate) end: i64,
}

impl Extent {
    /// The oldest that was not replayed, if there is one.
    pub(crate) fn waiting_from(self) -> i64 {
        self.replayed.unwrap_or(0).max(self.start)
    }
}

/// The newest marker of each partition whose offset the group does not have, so that no record is read twice in search of
/// one.
pub(crate) type Recalled = Mutex<BTreeMap<i32, Searched>>;

/// Remembers how far a partition was searched for markers, and what the last one says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Searched {
    end: i64,
    replayed: Option<i64>,
}

impl DeadLetters {
    /// Asks where the letters are and which of them were replayed.
    pub fn open(&self, patience: Patience) -> anyhow::Result<Letters> {
        let mut config = self.kafka.consumer(&self.group);
        config.set("enable.partition.eof", "true");
        let consumer: BaseConsumer<Quiet> =
            config.create_with_context(Quiet::default()).context("make a Kafka client")?;
        let topic = self.topics.dead_letters.clone();
        let count = count_partitions(&consumer, &topic, patience.call()).map_err(|reason| anyhow!(reason))?;
        let mut partitions = BTreeMap::new();
        for (partition, replayed) in committed(&consumer, &topic, count as i32, patience)? {
            let (start, end) = consumer
                .fetch_watermarks(&topic, partition, patience.call())
                .map_err(|error| unanswered(&consumer, &error))
                .with_context(|| format!("ask for the offsets of {topic}/{partition}"))?;
            partitions.insert(partition, Extent { start, replayed, end });
        }
        let mut letters = Letters { consumer, topic, partitions, patience };
        self.recall(&mut letters).context("look for markers of former replays")?;
        Ok(letters)
    }

    /// Reads from the markers what was replayed of the partitions that the group has no offset of.
    fn recall(&self, letters: &mut Letters) -> anyhow::Result<()> {
        // Copied, because reading may take until the deadline of a request.
        let mut recalled = self.recalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unknown = letters.partitions.iter().filter(|(_, extent)| extent.replayed.is_none());
        let ranges: BTreeMap<_, _> = unknown
            .map(|(partition, extent)| {
                let searched = recalled.entry(*partition).or_default();
                if searched.end > extent.end {
                    // The topic is another one with the same name.
                    *searched = Searched::default();
                }
                (*partition, (searched.end.max(extent.start), extent.end))
            })
            .collect();
        let read = letters.read_ranges(ranges.clone(), |record| {
            let searched = recalled.entry(record.partition()).or_default();
            searched.end = record.offset() + 1;
            searched.replayed = marker::read(&record, &self.group).or(searched.replayed);
            Ok(ControlFlow::Continue(()))
        });
        if read.is_ok() {
            for (partition, (_, end)) in ranges {
                let searched = recalled.entry(partition).or_default();
                searched.end = end;
                if let Some(extent) = letters.partitions.get_mut(&partition) {
                    extent.replayed = searched.replayed;
                }
            }
        }
        // The next search goes on from here even if this one was not finished.
        *self.recalled.lock().unwrap_or_else(PoisonError::into_inner) = recalled;
        read
    }
}

impl Letters {
    /// Partition and number of offsets that were deleted by retention before they were replayed.
    pub fn expired(&self) -> Vec<(i32, i64)> {
        let expired = self.partitions.iter().filter_map(|(partition, extent)| {
            Some((*partition, extent.start - extent.replayed?)).filter(|(_, expired)| *expired > 0)
        });
        expired.collect()
    }

    /// Visits the letters, all of them or those not replayed, in order within each partition, until the visitor breaks.
    pub fn visit(
        &self,
        all: bool,
        visitor: impl FnMut(BorrowedMessage<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let ranges = self.partitions.iter().map(|(partition, extent)| {
            (*partition, (if all { extent.start } else { extent.waiting_from() }, extent.end))
        });
        self.visit_ranges(ranges.collect(), visitor)
    }

    /// The same for offsets from the first up to the second, which is none of them, of each partition.
    pub(crate) fn visit_ranges(
        &self,
        ranges: BTreeMap<i32, (i64, i64)>,
        mut visitor: impl FnMut(BorrowedMessage<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        self.read_ranges(ranges, |record| {
            if marker::is_marker(&record) { Ok(ControlFlow::Continue(())) } else { visitor(record) }
        })
    }

    /// Reads letters and markers alike.
    fn read_ranges(
        &self,
        mut ranges: BTreeMap<i32, (i64, i64)>,
        mut visitor: impl FnMut(BorrowedMessage<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        ranges.retain(|_, (start, end)| start < end);
        let mut unread: BTreeSet<i32> = ranges.keys().copied().collect();
        self.assign(ranges.iter().map(|(partition, (start, _))| (*partition, *start)))?;
        let mut heard = Instant::now();
        while !unread.is_empty() {
            if self.patience.is_over(heard) {
                return Err(self.nothing_heard());
            }
            match self.poll() {
                Some(Ok(letter)) => {
                    heard = Instant::now();
                    let (partition, offset) = (letter.partition(), letter.offset());
                    let end = ranges.get(&partition).map_or(0, |(_, end)| *end);
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
                Some(Err(_)) | None => {}
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
        self.assign([(partition, offset)])?;
        let began = Instant::now();
        while !self.patience.is_over(began) {
            match self.poll() {
                Some(Ok(letter)) if letter.offset() == offset && !marker::is_marker(&letter) => return Ok(letter),
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Err(nothing()),
                Some(Err(error)) if !passes(&error) => return Err(error).context("read dead letters"),
                Some(Err(_)) | None => {}
            }
        }
        Err(self.nothing_heard())
    }

    fn poll(&self) -> Option<KafkaResult<BorrowedMessage<'_>>> {
        self.consumer.poll(kafka::poll_timeout(self.patience.call().min(Duration::from_secs(1))))
    }

    fn assign(&self, starts: impl IntoIterator<Item = (i32, i64)>) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in starts {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
        }
        self.consumer.assign(&list).context("start reading")
    }

    fn nothing_heard(&self) -> anyhow::Error {
        match self.consumer.context().troubles().last() {
            Some(trouble) => anyhow!("read dead letters: Kafka cannot be used: {trouble}"),
            None => anyhow!("read dead letters: no answer from Kafka in time"),
        }
    }
}

/// What was replayed, by partition.
fn committed(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    partitions: i32,
    patience: Patience,
) -> anyhow::Result<BTreeMap<i32, Option<i64>>> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, partitions - 1);
    let began = Instant::now();
    let committed = loop {
        match consumer.committed_offsets(asked.clone(), patience.call()) {
            Ok(committed) => break committed,
            Err(_) if !patience.is_over(began) => std::thread::sleep(Duration::from_millis(200)),
            Err(error) => return Err(unanswered(consumer, &error)).context("ask what was replayed"),
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

fn unanswered(consumer: &BaseConsumer<Quiet>, error: &KafkaError) -> anyhow::Error {
    anyhow!(kafka::why(error, consumer.context().troubles().last().as_ref()))
}
