//! Reads the dead letters in pages, newest first, and counts them. Kafka only reads forwards, so a log is read
//! backwards in windows. The work is bounded, however many letters exist: by the number of offsets, by memory, by the
//! deadline.

use std::collections::{BTreeMap, VecDeque};

use anyhow::bail;
use orderflow_service::kafka::reader::Ranges;
use rdkafka::{Message, message::BorrowedMessage};

use crate::{Letters, letters::Extent};

/// The most offsets of a partition that one page or one count reads. Most logs have fewer letters.
const MOST_OFFSETS: i64 = 10_000;

/// The size of the first window, in offsets: enough for a page of 20, even if a transaction marker follows each letter.
const FIRST_WINDOW: i64 = 64;

/// A page of letters, newest first.
#[derive(Debug)]
pub struct Page<T> {
    pub letters: Vec<T>,
    /// The offset before which the next page begins, if there may be one.
    pub next_before: Option<i64>,
}

/// The number of letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The letters that were not replayed yet.
    pub waiting: u64,
    pub total: u64,
    /// True if all letters were counted. False if a partition has more than 10,000 offsets, or the deadline ended the
    /// count.
    pub complete: bool,
}

/// The last counts and the offsets they belong to, so that an unchanged topic is not read again.
#[derive(Debug, Default)]
pub struct CountCache(Option<(BTreeMap<i32, Extent>, Counts)>);

/// An offset is ambiguous, because the topic has several partitions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{topic} has {partitions} partitions, and an offset names a letter in one only: use orderflow-consumer dlq")]
pub struct SeveralPartitions {
    pub topic: String,
    pub partitions: usize,
}

impl Letters {
    /// Reads the newest letters before an offset, at most `limit`. `read` converts each; its second argument is true if
    /// the letter was not replayed yet. Returns what was read before the deadline, or an error if that is nothing.
    pub fn page<T>(
        &self,
        before: Option<i64>,
        limit: usize,
        read: impl Fn(&BorrowedMessage<'_>, bool) -> T,
    ) -> anyhow::Result<Page<T>> {
        let (partition, extent) = self.only_partition()?;
        let mut found: VecDeque<(i64, T)> = VecDeque::new();
        let mut lowest = before.unwrap_or(i64::MAX).min(extent.end);
        for (from, to) in Windows::below(lowest, extent.start) {
            // One letter more than the page has, to know whether a next page exists.
            let room = limit + 1 - found.len();
            let mut window = VecDeque::new();
            let visited = self.visit_range(partition, (from, to), |letter| {
                if window.len() == room {
                    window.pop_front();
                }
                let offset = letter.offset();
                window.push_back((offset, read(letter, offset >= extent.waiting_from())));
            });
            match visited {
                Ok(()) => lowest = from,
                Err(error) if found.is_empty() => return Err(error),
                Err(_) => break,
            }
            window.append(&mut found);
            found = window;
            if found.len() > limit {
                break;
            }
        }
        let next_before = if found.len() > limit {
            found.pop_front();
            found.front().map(|(offset, _)| *offset)
        } else {
            Some(lowest).filter(|lowest| *lowest > extent.start)
        };
        Ok(Page { letters: found.into_iter().rev().map(|(_, letter)| letter).collect(), next_before })
    }

    /// Counts the letters, unless `cache` has the counts of the same offsets.
    pub fn count(&self, cache: &mut CountCache) -> anyhow::Result<Counts> {
        if let Some((partitions, counts)) = &cache.0
            && *partitions == self.partitions
            && counts.complete
        {
            return Ok(*counts);
        }
        let mut counts = Counts { waiting: 0, total: 0, complete: true };
        for (partition, extent) in &self.partitions {
            let mut lowest = extent.end;
            for (from, to) in Windows::below(extent.end, extent.start) {
                let (mut waiting, mut total) = (0, 0);
                let visited = self.visit_range(*partition, (from, to), |letter| {
                    total += 1;
                    waiting += u64::from(letter.offset() >= extent.waiting_from());
                });
                match visited {
                    Ok(()) => lowest = from,
                    Err(error) if counts.total == 0 => return Err(error),
                    Err(_) => break,
                }
                counts.waiting += waiting;
                counts.total += total;
            }
            counts.complete &= lowest <= extent.start;
        }
        cache.0 = Some((self.partitions.clone(), counts));
        Ok(counts)
    }

    /// Returns true if a letter at this offset or a lower one may still wait to be replayed.
    pub fn may_wait_through(&self, offset: i64) -> anyhow::Result<bool> {
        let (_, extent) = self.only_partition()?;
        Ok(extent.waiting_from() < extent.end.min(offset.saturating_add(1)))
    }

    /// Returns the only partition, or [`SeveralPartitions`] if there are more.
    pub(crate) fn only_partition(&self) -> anyhow::Result<(i32, Extent)> {
        match self.partitions.iter().next() {
            Some((partition, extent)) if self.partitions.len() == 1 => Ok((*partition, *extent)),
            _ => bail!(SeveralPartitions { topic: self.topic.clone(), partitions: self.partitions.len() }),
        }
    }

    fn visit_range(
        &self,
        partition: i32,
        range: (i64, i64),
        mut visitor: impl FnMut(&BorrowedMessage<'_>),
    ) -> anyhow::Result<()> {
        self.visit_ranges(&Ranges::from([(partition, range)]), |letter| {
            visitor(&letter);
            Ok(std::ops::ControlFlow::Continue(()))
        })
    }
}

/// Windows of offsets, newest first, each four times as large as the one before it.
struct Windows {
    lowest: i64,
    start: i64,
    size: i64,
    left: i64,
}

impl Windows {
    fn below(end: i64, start: i64) -> Self {
        Self { lowest: end, start, size: FIRST_WINDOW, left: MOST_OFFSETS }
    }
}

impl Iterator for Windows {
    /// The first offset of a window, and the one behind its last.
    type Item = (i64, i64);

    fn next(&mut self) -> Option<(i64, i64)> {
        let size = self.size.min(self.left).min(self.lowest - self.start);
        if size <= 0 {
            return None;
        }
        let window = (self.lowest - size, self.lowest);
        (self.lowest, self.left, self.size) = (window.0, self.left - size, self.size * 4);
        Some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_a_log_without_a_gap_down_to_its_start() {
        let windows: Vec<_> = Windows::below(400, 7).collect();
        assert_eq!(windows, [(336, 400), (80, 336), (7, 80)]);
        assert_eq!(Windows::below(7, 7).count(), 0);
        // The requested offset is below the oldest that retention has left.
        assert_eq!(Windows::below(3, 7).count(), 0);
    }

    #[test]
    fn windows_cover_a_bounded_number_of_offsets() {
        let covered: i64 = Windows::below(1_000_000, 0).map(|(from, to)| to - from).sum();
        assert_eq!(covered, MOST_OFFSETS);
    }
}
