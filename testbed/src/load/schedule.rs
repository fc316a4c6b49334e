//! Which order is next and when it is due; shared by all connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Schedule {
    start: Instant,
    duration: Duration,
    /// Orders per second; 0 means at once.
    rate: u32,
    next: AtomicU64,
}

/// One order to be sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Due {
    pub(super) number: u64,
    /// Latency counts from here. The timer that waits for it has steps of 1 ms, which is how much a rate may add.
    pub(super) at: Instant,
}

impl Schedule {
    pub(super) fn new(start: Instant, rate: u32, duration: Duration) -> Self {
        Self { start, duration, rate, next: AtomicU64::new(0) }
    }

    /// The next order, or nothing once the time is over: what is late then stays unsent.
    pub(super) fn next(&self) -> Option<Due> {
        let now = Instant::now();
        if now >= self.start + self.duration {
            return None;
        }
        if self.rate == 0 {
            return Some(Due { number: self.next.fetch_add(1, Ordering::Relaxed), at: now });
        }
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |number| {
                (number < self.planned()).then_some(number + 1)
            })
            .ok()
            .map(|number| Due { number, at: self.start + self.offset(number) })
    }

    /// Orders that were due by now and that no connection was free to send.
    pub(super) fn unsent(&self) -> u64 {
        if self.rate == 0 {
            return 0;
        }
        let elapsed = self.start.elapsed().min(self.duration);
        let due = (elapsed.as_secs_f64() * f64::from(self.rate)) as u64;
        due.min(self.planned()).saturating_sub(self.next.load(Ordering::Relaxed))
    }

    fn planned(&self) -> u64 {
        self.duration.as_secs() * u64::from(self.rate)
    }

    fn offset(&self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / f64::from(self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn orders_are_due_at_their_rate_however_late_they_are_asked_for() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 10, Duration::from_secs(2));
        tokio::time::advance(Duration::from_millis(1500)).await;
        let due: Vec<Duration> = (0..3).filter_map(|_| schedule.next()).map(|due| due.at - start).collect();
        assert_eq!(due, [0, 100, 200].map(Duration::from_millis));
        assert_eq!(schedule.unsent(), 12);
    }

    #[tokio::test(start_paused = true)]
    async fn no_order_is_sent_after_the_time_is_over() {
        let schedule = Schedule::new(Instant::now(), 0, Duration::from_secs(2));
        assert!(schedule.next().is_some());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(schedule.next(), None);
    }
}
