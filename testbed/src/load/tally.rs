//! The counts of a load: responses by status, failures by kind, and latencies.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;

/// The longest latency, in microseconds: a response after the request timeout does not count.
const LONGEST: u64 = 60_000_000;

/// The result of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Answered(u16),
    /// No connection: the order was certainly not accepted.
    NotConnected,
    /// The connection was lost before a response: the order may or may not be accepted.
    ConnectionLost,
    /// No response in time: the order may or may not be accepted.
    TimedOut,
}

impl Outcome {
    /// Returns whether the status is 200 or 201.
    pub fn succeeded(self) -> bool {
        matches!(self, Self::Answered(200 | 201))
    }

    pub fn name(self) -> String {
        match self {
            Self::Answered(status) => status.to_string(),
            Self::NotConnected => "not connected".to_owned(),
            Self::ConnectionLost => "connection lost".to_owned(),
            Self::TimedOut => "timed out".to_owned(),
        }
    }
}

#[derive(Debug)]
pub struct Tally {
    outcomes: BTreeMap<Outcome, u64>,
    /// The latencies of successful requests, in microseconds.
    latencies: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            outcomes: BTreeMap::new(),
            latencies: Histogram::new_with_bounds(1, LONGEST, 3).expect("these bounds are valid"),
        }
    }
}

impl Tally {
    pub(super) fn count(&mut self, outcome: Outcome, latency: Duration) {
        *self.outcomes.entry(outcome).or_default() += 1;
        if outcome.succeeded() {
            self.latencies.saturating_record(latency.as_micros().try_into().unwrap_or(LONGEST));
        }
    }

    pub fn add(&mut self, other: &Self) {
        for (outcome, count) in &other.outcomes {
            *self.outcomes.entry(*outcome).or_default() += count;
        }
        self.latencies.add(&other.latencies).expect("both have the same bounds");
    }

    pub fn sent(&self) -> u64 {
        self.outcomes.values().sum()
    }

    pub fn succeeded(&self) -> u64 {
        self.outcomes.iter().filter(|(outcome, _)| outcome.succeeded()).map(|(_, count)| count).sum()
    }

    /// Returns the outcomes other than success, with their counts.
    pub fn others(&self) -> impl Iterator<Item = (Outcome, u64)> {
        self.outcomes.iter().map(|(outcome, count)| (*outcome, *count)).filter(|(outcome, _)| !outcome.succeeded())
    }

    /// Returns the latency that this share of the successes, 0 to 1, did not exceed.
    pub fn latency(&self, share: f64) -> Duration {
        Duration::from_micros(self.latencies.value_at_quantile(share))
    }
}

/// The tally of one connection. The display empties it now and then; no other task waits for its lock.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<Tally>>);

impl Shared {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Tally::default())))
    }

    pub(super) fn count(&self, outcome: Outcome, latency: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count(outcome, latency);
    }

    pub(super) fn take(&self) -> Tally {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
