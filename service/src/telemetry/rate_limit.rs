//! Limits the warnings and errors of each place in the code that logs, so that a client cannot flood the log with a
//! line for each request.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tracing::{Event, Level, Subscriber, callsite::Identifier};
use tracing_subscriber::{Layer, layer::Context};

/// The most lines of one place in a burst.
const BURST: f64 = 100.0;

/// The most lines of one place per second after a burst.
const PER_SECOND: f64 = 10.0;

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of lines that were dropped over the limit since the start of the process.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The token buckets of all places that have logged a warning or an error. Their number is bounded by that of the
/// places in the code.
#[derive(Debug, Default)]
pub struct RateLimit {
    buckets: Mutex<HashMap<Identifier, Bucket>>,
}

impl<S: Subscriber> Layer<S> for RateLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN {
            return true;
        }
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let is_within = buckets.entry(metadata.callsite()).or_insert_with(|| Bucket::full(now)).take(now);
        if !is_within {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        is_within
    }
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(at: Instant) -> Self {
        Self { tokens: BURST, at }
    }

    fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * PER_SECOND).min(BURST);
        self.at = now;
        let is_within = self.tokens >= 1.0;
        if is_within {
            self.tokens -= 1.0;
        }
        is_within
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::Arc,
        time::Duration,
    };

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn count(&self, text: &str) -> usize {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().matches(text).count()
        }
    }

    #[test]
    fn a_bucket_allows_a_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let mut taken = |now: Instant| (0..1000).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(start), 100);
        assert_eq!(taken(start + Duration::from_millis(50)), 0);
        assert_eq!(taken(start + Duration::from_secs(3)), 30);
        assert_eq!(taken(start + Duration::from_secs(3600)), 100);
    }

    #[test]
    fn a_place_that_floods_the_log_is_counted_and_does_not_suppress_others() {
        let log = Log::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let before = dropped();
        tracing::subscriber::with_default(lines.with(RateLimit::default()), || {
            for _ in 0..10_000 {
                tracing::warn!("flood");
                tracing::info!("news");
            }
            tracing::error!("another");
        });
        let counted = (dropped() - before) as usize;
        assert!(counted > 0, "nothing was dropped");
        assert_eq!(log.count("flood") + counted, 10_000);
        assert_eq!(log.count("news"), 10_000);
        assert_eq!(log.count("another"), 1);
    }
}
