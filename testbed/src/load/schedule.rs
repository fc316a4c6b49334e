//! The order to send next and its due time; shared by all connections.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(super) struct Schedule {
    start: Instant,
    duration: Duration,
    /// Orders per second; 0 means at once.
    rate: u32,
    next: AtomicU64,
    /// A permit for each order that is due and not taken; closed once the time is over.
    due: Semaphore,
}

/// One order to be sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Due {
    pub(super) number: u64,
    /// The moment from which the latency counts.
    pub(super) at: Instant,
}

impl Schedule {
    pub(super) fn new(start: Instant, rate: u32, duration: Duration) -> Self {
        Self { start, duration, rate, next: AtomicU64::new(0), due: Semaphore::new(0) }
    }

    /// Releases orders as they become due, until the time is over. It does nothing without a rate. It runs on a thread
    /// of its own: the runtime's timer has steps of 1 ms and rounds up, which would add more to a latency than the
    /// server does.
    pub(super) fn run_clock(&self, stop: &CancellationToken) {
        let offsets = (0..self.planned()).map(|number| self.offset(number));
        for (count, offset) in offsets.map(|offset| (1, offset)).chain([(0, self.duration)]) {
            thread::sleep((self.start + offset).saturating_duration_since(Instant::now()));
            if stop.is_cancelled() {
                break;
            }
            self.due.add_permits(count);
        }
        self.due.close();
    }

    /// Waits for the next order that is due. Returns `None` once the time is over: orders that are late then stay
    /// unsent.
    pub(super) async fn next(&self) -> Option<Due> {
        if self.rate > 0 {
            self.due.acquire().await.ok()?.forget();
        }
        self.take()
    }

    fn take(&self) -> Option<Due> {
        let now = Instant::now();
        if now >= self.start + self.duration {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Some(Due { number, at: if self.rate == 0 { now } else { self.start + self.offset(number) } })
    }

    /// Returns how many orders were due by now while no connection was free to send them.
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
        let due: Vec<Duration> = (0..3).filter_map(|_| schedule.take()).map(|due| due.at - start).collect();
        assert_eq!(due, [0, 100, 200].map(Duration::from_millis));
        assert_eq!(schedule.unsent(), 12);
    }

    #[tokio::test(start_paused = true)]
    async fn no_order_is_sent_after_the_time_is_over() {
        let schedule = Schedule::new(Instant::now(), 0, Duration::from_secs(2));
        assert!(schedule.next().await.is_some());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(schedule.next().await, None);
    }

    #[tokio::test]
    async fn no_order_is_taken_before_it_is_due() {
        let (start, rate, duration) = (Instant::now(), 200, Duration::from_secs(1));
        let schedule = std::sync::Arc::new(Schedule::new(start, rate, duration));
        let clock = {
            let schedule = schedule.clone();
            thread::spawn(move || schedule.run_clock(&CancellationToken::new()))
        };
        let mut taken = 0;
        while let Some(due) = schedule.next().await {
            assert!(Instant::now() >= due.at, "{due:?}");
            taken += 1;
        }
        clock.join().unwrap();
        assert_eq!(taken + schedule.unsent(), 200);
        assert!(taken > 0);
    }
}
