//! The ring: the latest frames of this process, numbered from 1, which all streams read from. It is bounded in frames
//! and in bytes, and knows no streams: a stream that reads too slowly learns here how many notifications it missed.
//! Pure.

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

/// Most frames that a stream may be behind: 51 s at 5 frames a second, longer than a reconnect takes.
const MOST_FRAMES: usize = 256;

/// Most bytes of all frames; a frame has at most 160 KiB, and usually less than 10.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// Time over which the pace is measured.
const PACE: Duration = Duration::from_secs(10);

pub struct Ring {
    epoch: Uuid,
    frames: VecDeque<Entry>,
    bytes: usize,
    newest: Place,
    recent: Latest,
    /// Times and counts of the frames of the last [`PACE`].
    paces: VecDeque<(Instant, u64)>,
    history: History,
}

struct Entry {
    frame: Frame,
    /// Notifications of the epoch before this frame.
    before: u64,
}

/// The place of a stream: after this frame, and after so many notifications of the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub number: u64,
    pub total: u64,
}

/// The next item after a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Nothing,
    Frame(Bytes, Place),
    /// The frame is gone; so many notifications are missed up to the newest frame.
    Lagged {
        missed: u64,
        newest: Place,
    },
}

/// The reason why a stream cannot resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The id is not of this epoch: another process gave it.
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

    /// Returns the notifications that a stream from the newest frame on begins with.
    pub fn recent(&self) -> &Latest {
        &self.recent
    }

    /// Begins with the notifications from before the epoch, or goes on after a gap.
    pub fn begin(&mut self, latest: Latest) {
        self.recent = latest;
        // Nothing is known about the time before.
        self.history = History::new(Timestamp::now());
    }

    pub fn push(&mut self, pending: &Pending, map: &ShardMap, now: Instant) {
        let frame = pending.render(map, self.epoch, self.newest.number + 1, self.newest.total + pending.count());
        self.recent.extend(pending.latest().clone());
        self.history.add(pending, Timestamp::now());
        self.push_frame(frame);
        self.forget_paces(now);
        self.paces.push_back((now, pending.count()));
    }

    /// Records a gap of unknown size: every stream gets a `reset`, also one that resumes across it.
    pub fn gap(&mut self) {
        let number = self.newest.number + 1;
        let text = format!("id: {}:{number}\nevent: reset\ndata: {{\"reason\":\"gap\"}}\n\n", self.epoch);
        self.push_frame(Frame::bare(text));
    }

    fn push_frame(&mut self, frame: Frame) {
        let before = self.newest.total;
        self.newest = Place { number: self.newest.number + 1, total: before + frame.count };
        self.bytes += frame.text.len();
        self.frames.push_back(Entry { frame, before });
        while self.frames.len() > MOST_FRAMES || (self.bytes > MOST_BYTES && self.frames.len() > 1) {
            let gone = self.frames.pop_front().map_or(0, |entry| entry.frame.text.len());
            self.bytes -= gone;
        }
    }

    /// Returns the number of the oldest frame of the ring, or of the next one if it is empty.
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
        let Entry { frame, before } = &self.frames[index as usize];
        Next::Frame(frame.text.clone(), Place { number: place.number + 1, total: before + frame.count })
    }

    /// Returns the place after the frame of this `Last-Event-ID`.
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

    /// Returns the notification of an order, if a frame of the ring shows it.
    pub fn find(&self, order_id: OrderId) -> Option<&str> {
        let in_frames = || self.frames.iter().rev().find_map(|entry| entry.frame.find(order_id));
        self.recent.find(order_id).or_else(in_frames)
    }

    /// Returns the notifications per second, over the last 10 s.
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

    /// Returns the numbers of the frames that a stream gets after a place, and its place then.
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
    fn a_stream_does_not_resume_across_frames_that_are_gone() {
        let ring = ring(MOST_FRAMES as u128 + 10);
        let resume = |number: u64| ring.resume(&format!("{}:{number}", ring.epoch));
        assert_eq!(resume(9), Err(Refusal::TooOld));
        assert_eq!(resume(10), Ok(place(10)));
        let (numbers, _) = read(&ring, place(10));
        assert_eq!(numbers, (11..=MOST_FRAMES as u64 + 10).collect::<Vec<_>>());
    }

    #[test]
    fn an_id_of_another_process_or_of_no_frame_is_refused() {
        let ring = ring(5);
        let (epoch, other) = (ring.epoch, Uuid::from_u128(8));
        for id in [String::new(), "5".into(), format!("{other}:3"), format!("{epoch}:"), format!("{epoch}:-1")] {
            assert_eq!(ring.resume(&id), Err(Refusal::OtherReplica), "{id:?}");
        }
        assert_eq!(ring.resume(&format!("{epoch}:6")), Err(Refusal::OtherReplica), "a frame of the future");
    }

    #[test]
    fn a_stream_that_lags_learns_how_many_notifications_it_missed() {
        let ring = ring(MOST_FRAMES as u128 + 10);
        let newest = place(MOST_FRAMES as u64 + 10);
        assert_eq!(ring.after(place(9)), Next::Lagged { missed: newest.total - 27, newest });
        assert!(matches!(ring.after(place(10)), Next::Frame(..)));
    }

    #[test]
    fn the_ring_is_bounded_in_bytes() {
        let mut ring = Ring::new(Uuid::nil());
        for _ in 0..MOST_FRAMES {
            ring.push_frame(Frame::bare("x".repeat(100 * 1024)));
        }
        assert_eq!(ring.frames.len(), MOST_BYTES / (100 * 1024));
        assert_eq!(ring.bytes, ring.frames.iter().map(|entry| entry.frame.text.len()).sum::<usize>());
        ring.push_frame(Frame::bare("x".repeat(MOST_BYTES + 1)));
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
