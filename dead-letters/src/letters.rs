//! Reads the dead letters in Kafka, in order per partition, without joining a group.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, anyhow};
use orderflow_service::kafka::reader::{Deadline, Ranges, Reader};
use rdkafka::{Message, message::BorrowedMessage};

use crate::{DeadLetters, marker};

/// The letters that existed when [`DeadLetters::open`] read the offsets. Later ones are not included.
pub struct Letters {
    pub(crate) reader: Reader,
    pub topic: String,
    pub(crate) partitions: BTreeMap<i32, Extent>,
    deadline: Deadline,
}

/// The offsets of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The oldest offset that Kafka has.
    pub(crate) start: i64,
    /// The first offset that was not replayed, or `None` if Kafka has no trace of a replay.
    pub(crate) replayed: Option<i64>,
    /// The offset behind the last one. Transaction markers have offsets as well, so `end - start` is not the number of
    /// letters.
    pub(crate) end: i64,
}

impl Extent {
    /// Returns the first offset that was not replayed and that Kafka still has.
    pub(crate) fn waiting_from(self) -> i64 {
        self.replayed.unwrap_or(0).max(self.start)
    }
}

/// A cache of the newest marker of each partition without a committed offset, so that no record is searched twice.
pub(crate) type MarkerCache = Mutex<BTreeMap<i32, MarkerSearch>>;

/// The progress of a search for markers in a partition, and the offset in the last marker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MarkerSearch {
    end: i64,
    replayed: Option<i64>,
}

impl DeadLetters {
    /// Reads the offsets of the letters, and which of them were replayed.
    pub fn open(&self, deadline: Deadline) -> anyhow::Result<Letters> {
        let reader = Reader::new(self.kafka.consumer(&self.group)).context("create a Kafka client")?;
        let topic = self.topics.dead_letters.clone();
        let count = reader.partitions(&topic, deadline)?;
        let committed = reader.committed(&topic, count, deadline).context("read which letters were replayed")?;
        let mut partitions = BTreeMap::new();
        for partition in 0..count {
            let (start, end) = reader.extent(&topic, partition, deadline)?;
            partitions.insert(partition, Extent { start, replayed: committed.get(&partition).copied(), end });
        }
        let mut letters = Letters { reader, topic, partitions, deadline };
        self.read_markers(&mut letters).context("read the markers of earlier replays")?;
        Ok(letters)
    }

    /// Reads the replayed offset from the markers, for each partition in which the group has no committed offset.
    fn read_markers(&self, letters: &mut Letters) -> anyhow::Result<()> {
        // Copied, so that the lock is not held while reading, which may take until the deadline of a request.
        let mut markers = self.markers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unknown = letters.partitions.iter().filter(|(_, extent)| extent.replayed.is_none());
        let ranges: Ranges = unknown
            .map(|(partition, extent)| {
                let searched = markers.entry(*partition).or_default();
                if searched.end > extent.end {
                    // The topic was deleted and created again.
                    *searched = MarkerSearch::default();
                }
                (*partition, (searched.end.max(extent.start), extent.end))
            })
            .collect();
        let read = letters.read_ranges(&ranges, |record| {
            let searched = markers.entry(record.partition()).or_default();
            searched.end = record.offset() + 1;
            searched.replayed = marker::read(&record, &self.group).or(searched.replayed);
            Ok(ControlFlow::Continue(()))
        });
        if read.is_ok() {
            for (partition, (_, end)) in ranges {
                let searched = markers.entry(partition).or_default();
                searched.end = end;
                if let Some(extent) = letters.partitions.get_mut(&partition) {
                    extent.replayed = searched.replayed;
                }
            }
        }
        // The next search continues here, even if this one failed.
        *self.markers.lock().unwrap_or_else(PoisonError::into_inner) = markers;
        read
    }
}

impl Letters {
    /// Returns, by partition, the number of offsets that retention deleted before they were replayed.
    pub fn expired(&self) -> Vec<(i32, i64)> {
        let expired = self.partitions.iter().filter_map(|(partition, extent)| {
            Some((*partition, extent.start - extent.replayed?)).filter(|(_, expired)| *expired > 0)
        });
        expired.collect()
    }

    /// Visits all letters, or those that were not replayed, in order within each partition, until the visitor breaks.
    pub fn visit(
        &self,
        all: bool,
        visitor: impl FnMut(BorrowedMessage<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let ranges = self.partitions.iter().map(|(partition, extent)| {
            (*partition, (if all { extent.start } else { extent.waiting_from() }, extent.end))
        });
        self.visit_ranges(&ranges.collect(), visitor)
    }

    /// Visits the letters in these ranges of offsets.
    pub(crate) fn visit_ranges(
        &self,
        ranges: &Ranges,
        mut visitor: impl FnMut(BorrowedMessage<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        self.read_ranges(ranges, |record| {
            if marker::is_marker(&record) { Ok(ControlFlow::Continue(())) } else { visitor(record) }
        })
    }

    /// Reads all records in these ranges, letters and markers.
    fn read_ranges(
        &self,
        ranges: &Ranges,
        mut visitor: impl FnMut(BorrowedMessage<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        for record in self.reader.read(&self.topic, ranges, self.deadline)? {
            if visitor(record?)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Returns the letter at exactly this offset.
    pub fn at(&self, partition: i32, offset: i64) -> anyhow::Result<BorrowedMessage<'_>> {
        let missing = || anyhow!("there is no dead letter at offset {offset} of {}/{partition}", self.topic);
        let extent = self.partitions.get(&partition);
        let extent = extent.ok_or_else(|| anyhow!("{} has no partition {partition}", self.topic))?;
        if !(extent.start..extent.end).contains(&offset) {
            return Err(missing());
        }
        let range = Ranges::from([(partition, (offset, offset + 1))]);
        let record = self.reader.read(&self.topic, &range, self.deadline)?.next().transpose()?;
        record.filter(|letter| !marker::is_marker(letter)).ok_or_else(missing)
    }
}
