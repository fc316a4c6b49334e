//! The dead letters that Kafka has, read in order per partition, without a group membership.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, anyhow};
use orderflow_service::kafka::reader::{Deadline, Ranges, Reader};
use rdkafka::{Message, message::BorrowedMessage};

use crate::{DeadLetters, marker};

/// The letters as they were when [`DeadLetters::open`] asked; what comes later is in none of its answers.
pub struct Letters {
    pub(crate) reader: Reader,
    pub topic: String,
    pub(crate) partitions: BTreeMap<i32, Extent>,
    deadline: Deadline,
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
pub(crate) type MarkerCache = Mutex<BTreeMap<i32, MarkerSearch>>;

/// Remembers how far a partition was searched for markers, and what the last one says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MarkerSearch {
    end: i64,
    replayed: Option<i64>,
}

impl DeadLetters {
    /// Reads where the letters are, and which of them were replayed.
    pub fn open(&self, deadline: Deadline) -> anyhow::Result<Letters> {
        let reader = Reader::new(self.kafka.consumer(&self.group)).context("make a Kafka client")?;
        let topic = self.topics.dead_letters.clone();
        let count = reader.partitions(&topic, deadline)?;
        let committed = reader.committed(&topic, count, deadline).context("read what was replayed")?;
        let mut partitions = BTreeMap::new();
        for partition in 0..count {
            let (start, end) = reader.extent(&topic, partition, deadline)?;
            partitions.insert(partition, Extent { start, replayed: committed.get(&partition).copied(), end });
        }
        let mut letters = Letters { reader, topic, partitions, deadline };
        self.read_markers(&mut letters).context("read the markers of former replays")?;
        Ok(letters)
    }

    /// Reads from the markers what was replayed of the partitions that the group has no offset of.
    fn read_markers(&self, letters: &mut Letters) -> anyhow::Result<()> {
        // Copied, because reading may take until the deadline of a request.
        let mut markers = self.markers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unknown = letters.partitions.iter().filter(|(_, extent)| extent.replayed.is_none());
        let ranges: Ranges = unknown
            .map(|(partition, extent)| {
                let searched = markers.entry(*partition).or_default();
                if searched.end > extent.end {
                    // The topic is another one with the same name.
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
        // The next search goes on from here even if this one was not finished.
        *self.markers.lock().unwrap_or_else(PoisonError::into_inner) = markers;
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
        self.visit_ranges(&ranges.collect(), visitor)
    }

    /// The same for offsets from the first up to the second, which is none of them, of each partition.
    pub(crate) fn visit_ranges(
        &self,
        ranges: &Ranges,
        mut visitor: impl FnMut(BorrowedMessage<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        self.read_ranges(ranges, |record| {
            if marker::is_marker(&record) { Ok(ControlFlow::Continue(())) } else { visitor(record) }
        })
    }

    /// Reads letters and markers alike.
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

    /// Returns the letter at exactly that place.
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
