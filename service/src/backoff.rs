//! The one way to wait between tries: exponential with jitter, capped, started anew after a success.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Delays that double from `first` to `cap`, each with up to itself of jitter on top, so that many clients that lost the
/// same server do not come back at once.
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

    /// After a success.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
    }

    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().expect("a backoff without a limit of tries has a next delay")
    }

    /// Waits out the next delay.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }
}
