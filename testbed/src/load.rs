//! Requests over a fixed number of connections, and how they are answered.
//!
//! With a rate it is an open loop: request n is due at n / rate seconds, whether or not earlier ones were answered, and
//! its latency counts from then, so a server that stalls cannot hide the requests that waited meanwhile. With rate 0 each
//! connection sends its next one as soon as the last one was answered.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context, Result};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use schedule::Schedule;
use worker::Worker;

mod order;
mod schedule;
mod tally;
mod worker;

pub use order::{Accepted, Orders, Request};
pub use tally::{Outcome, Tally};

/// What is sent, where to, and how fast.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `HOST:PORT`
    pub address: String,
    /// Requests per second over all connections; 0 is as fast as they are answered.
    pub rate: u32,
    /// Each with one request under way.
    pub connections: u32,
    pub duration: Duration,
}

/// Requests under way.
#[derive(Debug)]
pub struct Load {
    started: Instant,
    schedule: Arc<Schedule>,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
    tallies: Vec<tally::Shared>,
    workers: JoinSet<()>,
}

impl Load {
    /// Sends what `requests` makes of each number, from now on.
    pub fn start(plan: &Plan, requests: impl Request + 'static) -> Self {
        let requests: Arc<dyn Request> = Arc::new(requests);
        let (started, stop) = (Instant::now(), CancellationToken::new());
        let schedule = Arc::new(Schedule::new(started, plan.rate, plan.duration));
        if plan.rate > 0 {
            let (schedule, stop) = (schedule.clone(), stop.clone());
            thread::spawn(move || schedule.run_clock(&stop));
        }
        let (mut tallies, mut workers) = (Vec::new(), JoinSet::new());
        for _ in 0..plan.connections {
            let worker = Worker::new(&plan.address, schedule.clone(), requests.clone(), stop.clone());
            tallies.push(worker.tally());
            workers.spawn(worker.run());
        }
        Self { started, schedule, _stop_when_dropped: stop.clone().drop_guard(), stop, tallies, workers }
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Tally {
        let mut sum = Tally::default();
        for tally in &self.tallies {
            sum.add(&tally.take());
        }
        sum
    }

    /// Waits until the time is over and what was sent is answered. Cancel-safe.
    pub async fn ended(&mut self) -> Result<()> {
        while let Some(ended) = self.workers.join_next().await {
            ended.context("run a connection")?;
        }
        Ok(())
    }

    /// Sends nothing more.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Requests that were due by now and that no connection was free to send.
    pub fn unsent(&self) -> u64 {
        self.schedule.unsent()
    }
}
