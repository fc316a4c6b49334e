//! Dead letters newest first, a page at a time, and how many there are. Kafka reads forwards only, so a log is read
//! backwards in windows. Bounded, however many letters there are: by offsets looked at, by memory, by the deadline.

use std::collections::{BTreeMap, VecDeque};

use anyhow::bail;
use orderflow_service::kafka::reader::Ranges;
use rdkafka::{Message, message::BorrowedMessage};

use crate::{Letters, letters::Extent};

/// Offsets that one page or one count looks at, of each partition. Most logs have no such number of letters.
const MOST_OFFSETS: i64 = 10_000;

/// Offsets of the first window: more than a page of 20 has, even where each letter has a transaction marker of its own.
const FIRST_WINDOW: i64 = 64;

/// Letters, newest first.
#[derive(Debug)]
pub struct Page<T> {
    pub letters: Vec<T>,
    /// Where the next page begins, if there may be one: its letters are before this offset.
    pub next_before: Option<i64>,
}

/// How many letters there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Not replayed yet.
    pub waiting: u64,
    pub total: u64,
    /// Whether all were counted, and not only those among the newest 10,000 offsets of a partition, or those that could be
    /// read in time.
    pub complete: bool,
}

/// What was counted last, so that what has not changed is not read again.
#[derive(Debug, Default)]
pub struct CountCache(Option<(BTreeMap<i32, Extent>, Counts)>);

/// Why letters cannot be named by their offset alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{topic} has {partitions} partitions, and an offset names a letter in one only: use orderflow-consumer dlq")]
pub struct SeveralPartitions {
    pub topic: String,
    pub partitions: usize,
}

impl Letters {
    /// The newest letters, at most `limit`, of those before an offset; as `read` makes them, which is told which of them
    /// wait to be replayed. An error if nothing could be read; what was read in time is a page.
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
            // One more than the page, to know whether there is a next one.
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

    /// Counts what `known` does not tell already.
    pub fn count(&self, known: &mut CountCache) -> anyhow::Result<Counts> {
        if let Some((partitions, counts)) = &known.0
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
        known.0 = Some((self.partitions.clone(), counts));
        Ok(counts)
    }

    /// Whether one waits that has this offset or a lower one.
    pub fn may_wait_through(&self, offset: i64) -> anyhow::Result<bool> {
        let (_, extent) = self.only_partition()?;
        Ok(extent.waiting_from() < extent.end.min(offset.saturating_add(1)))
    }

    /// The one partition that the topic was made with.
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

/// Windows of offsets, the newest first, each four times as large as the one before it.
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
    /// The first offset, and the one behind the last.
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
        // Asked for letters before those that retention has left.
        assert_eq!(Windows::below(3, 7).count(), 0);
    }

    #[test]
    fn windows_end_after_so_many_offsets() {
        let looked_at: i64 = Windows::below(1_000_000, 0).map(|(from, to)| to - from).sum();
        assert_eq!(looked_at, MOST_OFFSETS);
    }
}
