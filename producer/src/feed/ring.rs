//! The ring: the latest frames of this process, numbered from 1, which all streams read from. Bounded in frames and in bytes,
//! and it knows of no stream: one that reads too slowly finds out here how many notifications it missed. Pure.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use axum::body::Bytes;
use orderflow_core::{OrderId, ShardMap, Timestamp};
use uuid::Uuid;

use super::{
    frame::{Frame, Latest, Pending},
    history::History,
};

/// At 5 frames a second what a stream may be behind: 51 s, longer than it takes to come back after a cut.
const MOST_FRAMES: usize = 256;

/// A frame has at most 160 KiB, and usually less than 10.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// Over which the pace is taken.
const PACE: Duration = Duration::from_secs(10);

pub struct Ring {
    epoch: Uuid,
    frames: VecDeque<Kept>,
    bytes: usize,
    newest: Place,
    recent: Latest,
    /// When frames of the last [`PACE`] were cut, and what they count.
    paces: VecDeque<(Instant, u64)>,
    history: History,
}

struct Kept {
    frame: Frame,
    before: u64,
}

/// How far a stream is: after this frame, and so many notifications of the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub number: u64,
    pub total: u64,
}

/// What comes after a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Nothing,
    Frame(Bytes, Place),
    /// It is gone, and so many notifications with it up to the newest frame.
    Lagged {
        missed: u64,
        newest: Place,
    },
}

/// Why a stream cannot go on where another broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The id is none of this epoch's: another process gave it.
    OtherReplica,
    TooOld,
}

impl Ring {
    pub fn new(epoch: Uuid) -> Self {
        Self {
            epoch,
            frames: VecDeque::new(),
            bytes: 0,
            newest: Place::default(),
            recent: Latest::default(),
            paces: VecDeque::new(),
            history: History::new(Timestamp::now()),
        }
    }

    /// Renders the notifications of the last minutes, up to and including the newest frame.
    pub fn history(&mut self) -> String {
        self.history.render(Timestamp::now())
    }

    pub fn epoch(&self) -> Uuid {
        self.epoch
    }

    pub fn newest(&self) -> Place {
        self.newest
    }

    /// What a stream begins with that begins at the newest frame.
    pub fn recent(&self) -> &Latest {
        &self.recent
    }

    /// Begins with what was notified before the epoch, or goes on after a gap.
    pub fn begin(&mut self, latest: Latest) {
        self.recent = latest;
        // Nothing is known about the time before.
        self.history = History::new(Timestamp::now());
    }

    pub fn push(&mut self, pending: &Pending, map: &ShardMap, now: Instant) {
        let frame = pending.render(map, self.epoch, self.newest.number + 1, self.newest.total + pending.count());
        self.recent.extend(pending.latest().clone());
        self.history.add(pending, Timestamp::now());
        self.keep(frame);
        self.forget_paces(now);
        self.paces.push_back((now, pending.count()));
    }

    /// From here on something is missing, nobody knows what: every stream is told, also one that resumes over it.
    pub fn gap(&mut self) {
        let number = self.newest.number + 1;
        let text = format!("id: {}:{number}\nevent: reset\ndata: {{\"reason\":\"gap\"}}\n\n", self.epoch);
        self.keep(Frame::bare(text));
    }

    fn keep(&mut self, frame: Frame) {
        let before = self.newest.total;
        self.newest = Place { number: self.newest.number + 1, total: before + frame.count };
        self.bytes += frame.text.len();
        self.frames.push_back(Kept { frame, before });
        while self.frames.len() > MOST_FRAMES || (self.bytes > MOST_BYTES && self.frames.len() > 1) {
            let gone = self.frames.pop_front().map_or(0, |kept| kept.frame.text.len());
            self.bytes -= gone;
        }
    }

    /// Number of the oldest frame that is still there; of the next one if there is none.
    fn oldest(&self) -> u64 {
        self.newest.number + 1 - self.frames.len() as u64
    }

    pub fn after(&self, place: Place) -> Next {
        if place.number >= self.newest.number {
            return Next::Nothing;
        }
        let Some(index) = (place.number + 1).checked_sub(self.oldest()) else {
            return Next::Lagged { missed: self.newest.total - place.total, newest: self.newest };
        };
        let Kept { frame, before } = &self.frames[index as usize];
        Next::Frame(frame.text.clone(), Place { number: place.number + 1, total: before + frame.count })
    }

    /// Where a stream goes on that got the frame of this `Last-Event-ID` last.
    pub fn resume(&self, last_event_id: &str) -> Result<Place, Refusal> {
        let number = last_event_id
            .split_once(':')
            .filter(|(epoch, _)| epoch.parse() == Ok(self.epoch))
            .and_then(|(_, number)| number.parse::<u64>().ok())
            .filter(|number| *number <= self.newest.number)
            .ok_or(Refusal::OtherReplica)?;
        if number == self.newest.number {
            return Ok(self.newest);
        }
        let index = (number + 1).checked_sub(self.oldest()).ok_or(Refusal::TooOld)?;
        Ok(Place { number, total: self.frames[index as usize].before })
    }

    /// The notification of an order, if a frame that is still there shows it.
    pub fn find(&self, order_id: OrderId) -> Option<&str> {
        let in_frames = || self.frames.iter().rev().find_map(|kept| kept.frame.find(order_id));
        self.recent.find(order_id).or_else(in_frames)
    }

    /// Notifications per second, over the last 10 s.
    pub fn pace(&mut self, now: Instant) -> f64 {
        self.forget_paces(now);
        let count: u64 = self.paces.iter().map(|(_, count)| count).sum();
        count as f64 / PACE.as_secs_f64()
    }

    fn forget_paces(&mut self, now: Instant) {
        while self.paces.front().is_some_and(|(when, _)| now.duration_since(*when) > PACE) {
            self.paces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::frame::tests::{map, pending};

    fn ring(frames: u128) -> Ring {
        let mut ring = Ring::new(Uuid::from_u128(7));
        for number in 0..frames {
            ring.push(&pending(number * 3..number * 3 + 3), &map(), Instant::now());
        }
        ring
    }

    fn place(number: u64) -> Place {
        Place { number, total: number * 3 }
    }

    /// Numbers of the frames that a stream gets from a place on, and where it is then.
    fn read(ring: &Ring, mut place: Place) -> (Vec<u64>, Place) {
        let mut numbers = Vec::new();
        while let Next::Frame(text, after) = ring.after(place) {
            assert!(text.starts_with(format!("id: {}:{}\n", ring.epoch, after.number).as_bytes()));
            numbers.push(after.number);
            place = after;
        }
        assert_eq!(ring.after(place), Next::Nothing);
        (numbers, place)
    }

    #[test]
    fn a_stream_gets_each_frame_after_its_place_once() {
        let mut ring = ring(5);
        let (numbers, last) = read(&ring, place(2));
        assert_eq!((numbers, last), (vec![3, 4, 5], place(5)));
        ring.push(&pending(0..1), &map(), Instant::now());
        assert_eq!(read(&ring, last), (vec![6], Place { number: 6, total: 16 }));
    }

    #[test]
    fn a_stream_resumes_after_the_frame_that_it_got_last() {
        let ring = ring(5);
        for number in 0..=5 {
            assert_eq!(ring.resume(&format!("{}:{number}", ring.epoch)), Ok(place(number)));
        }
    }

    #[test]
    fn a_stream_does_not_resume_over_what_is_gone() {
        let ring = ring(MOST_FRAMES as u128 + 10);
        let resume = |number: u64| ring.resume(&format!("{}:{number}", ring.epoch));
        assert_eq!(resume(9), Err(Refusal::TooOld));
        assert_eq!(resume(10), Ok(place(10)));
        let (numbers, _) = read(&ring, place(10));
        assert_eq!(numbers, (11..=MOST_FRAMES as u64 + 10).collect::<Vec<_>>());
    }

    #[test]
    fn an_id_that_another_process_gave_or_nobody_is_refused() {
        let ring = ring(5);
        let (epoch, other) = (ring.epoch, Uuid::from_u128(8));
        for id in [String::new(), "5".into(), format!("{other}:3"), format!("{epoch}:"), format!("{epoch}:-1")] {
            assert_eq!(ring.resume(&id), Err(Refusal::OtherReplica), "{id:?}");
        }
        assert_eq!(ring.resume(&format!("{epoch}:6")), Err(Refusal::OtherReplica), "a frame of the future");
    }

    #[test]
    fn a_stream_that_lags_is_told_exactly_how_much_it_missed() {
        let ring = ring(MOST_FRAMES as u128 + 10);
        let newest = place(MOST_FRAMES as u64 + 10);
        assert_eq!(ring.after(place(9)), Next::Lagged { missed: newest.total - 27, newest });
        assert!(matches!(ring.after(place(10)), Next::Frame(..)));
    }

    #[test]
    fn the_ring_is_bounded_in_bytes() {
        let mut ring = Ring::new(Uuid::nil());
        for _ in 0..MOST_FRAMES {
            ring.keep(Frame::bare("x".repeat(100 * 1024)));
        }
        assert_eq!(ring.frames.len(), MOST_BYTES / (100 * 1024));
        assert_eq!(ring.bytes, ring.frames.iter().map(|kept| kept.frame.text.len()).sum::<usize>());
        ring.keep(Frame::bare("x".repeat(MOST_BYTES + 1)));
        assert_eq!(ring.frames.len(), 1);
    }

    #[test]
    fn a_gap_has_a_place_among_the_frames() {
        let mut ring = ring(1);
        ring.gap();
        let Next::Frame(text, after) = ring.after(place(1)) else { panic!("no frame") };
        assert!(text.ends_with(b":2\nevent: reset\ndata: {\"reason\":\"gap\"}\n\n"));
        assert_eq!(after, Place { number: 2, total: 3 });
    }

    #[test]
    fn the_pace_is_that_of_the_last_ten_seconds() {
        let start = Instant::now();
        let mut ring = Ring::new(Uuid::nil());
        for second in 0..20 {
            ring.push(&pending(0..30), &map(), start + Duration::from_secs(second));
        }
        let now = start + Duration::from_millis(19_500);
        assert!((ring.pace(now) - 30.0).abs() < f64::EPSILON);
        assert!(ring.pace(now + PACE + PACE) < f64::EPSILON);
    }
}
