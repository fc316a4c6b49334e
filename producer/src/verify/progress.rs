//! Prints the progress of the command to stderr, at most once a second.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use orderflow_core::Timestamp;

/// Time between two lines of progress.
const INTERVAL: Duration = Duration::from_secs(1);

pub struct Progress {
    printed: Cell<Instant>,
    /// The slice in progress.
    slice: String,
    /// Number of orders in the previous slices.
    orders: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self { printed: Cell::new(Instant::now()), slice: String::new(), orders: 0 }
    }
}

impl Progress {
    pub fn begin(&mut self, from: Timestamp, to: Option<Timestamp>) {
        let from = if from == Timestamp::EPOCH { "the first order".to_owned() } else { from.to_string() };
        self.slice = format!("{from} to {}", to.map_or_else(|| "now".to_owned(), |to| to.to_string()));
    }

    pub fn end(&mut self, orders: usize) {
        self.orders += orders;
        self.print(|| "done".to_owned());
    }

    pub fn print(&self, step: impl FnOnce() -> String) {
        if self.printed.get().elapsed() >= INTERVAL {
            eprintln!("{} orders so far; {}: {}", self.orders, self.slice, step());
            self.printed.set(Instant::now());
        }
    }
}
