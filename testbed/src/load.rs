//! Requests over a fixed number of connections, and their results.
//!
//! With a rate it is an open loop: request n is due at n / rate seconds, whether or not earlier ones were answered. Its
//! latency counts from then, so a server that stalls cannot hide the requests that waited. With rate 0 each connection
//! sends its next request as soon as the last one was answered.

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

/// The target of a load, and its speed.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `HOST:PORT`
    pub address: String,
    /// Requests per second over all connections; 0 sends as fast as they are answered.
    pub rate: u32,
    /// The number of connections, each with one request in flight.
    pub connections: u32,
    pub duration: Duration,
}

/// A load that runs.
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
    /// Starts to send the requests that `requests` makes.
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

    /// Returns what was counted since the last call.
    pub fn take(&self) -> Tally {
        let mut sum = Tally::default();
        for tally in &self.tallies {
            sum.add(&tally.take());
        }
        sum
    }

    /// Waits until the time is over and all sent requests are answered. Cancel-safe.
    pub async fn ended(&mut self) -> Result<()> {
        while let Some(ended) = self.workers.join_next().await {
            ended.context("run a connection")?;
        }
        Ok(())
    }

    /// Stops sending.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Returns how many requests were due by now while no connection was free to send them.
    pub fn unsent(&self) -> u64 {
        self.schedule.unsent()
    }
}
