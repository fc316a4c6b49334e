//! Says on stderr how far the command is, at most once a second.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use orderflow_core::Timestamp;

/// Time between two lines of progress.
const INTERVAL: Duration = Duration::from_secs(1);

pub struct Progress {
    told: Cell<Instant>,
    /// The slice that is worked on.
    slice: String,
    /// Orders in the slices before.
    orders: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self { told: Cell::new(Instant::now()), slice: String::new(), orders: 0 }
    }
}

impl Progress {
    pub fn begin(&mut self, from: Timestamp, to: Option<Timestamp>) {
        let from = if from == Timestamp::EPOCH { "the first order".to_owned() } else { from.to_string() };
        self.slice = format!("{from} to {}", to.map_or_else(|| "now".to_owned(), |to| to.to_string()));
    }

    pub fn end(&mut self, orders: usize) {
        self.orders += orders;
        self.tell(|| "done".to_owned());
    }

    pub fn tell(&self, step: impl FnOnce() -> String) {
        if self.told.get().elapsed() >= INTERVAL {
            eprintln!("{} orders so far; {}: {}", self.orders, self.slice, step());
            self.told.set(Instant::now());
        }
    }
}
