//! The waits between retries: exponential with jitter, capped, reset after a success.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays that double from `first` to `cap`. Each gets a random jitter of up to its own length, so that clients that
/// lost the same server do not reconnect at once.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
}

impl Backoff {
    pub fn new(first: Duration, cap: Duration) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(first)
            .with_max_delay(cap)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        Self { builder, delays: builder.build() }
    }

    /// Starts with the first delay again. Call it after a success.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
    }

    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().expect("a backoff without a limit of tries has a next delay")
    }

    /// Waits for the next delay.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }
}
