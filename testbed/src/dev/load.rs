//! `orderflow-dev load`: sends orders over a fixed number of connections and measures how they are answered.
//!
//! With a rate it is an open loop: order n is due at n / rate seconds, whether or not earlier ones were answered, and
//! its latency counts from then, so a server that stalls cannot hide the orders that waited meanwhile. With rate 0 each
//! connection sends its next order as soon as the last one was answered.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use hyper::Uri;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::interrupt::Interrupts;

mod display;
mod order;
mod schedule;
mod tally;
mod worker;

use display::Display;
use schedule::Schedule;
use tally::Tally;
use worker::Worker;

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Options {
    /// Where the API is; http only
    #[arg(long, env = "LOAD_URL", default_value = "http://127.0.0.1:8080")]
    url: Uri,
    /// Orders per second over all connections; 0 is as fast as they are answered
    #[arg(long, env = "LOAD_RATE", default_value_t = 0)]
    rate: u32,
    /// Connections, each with one order under way
    #[arg(long, env = "LOAD_CONNECTIONS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Seconds to send for
    #[arg(long, env = "LOAD_DURATION", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// Users that order, spread evenly over the alphabet and so over the shards
    #[arg(long, env = "LOAD_USERS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
}

pub(super) async fn run(options: Options) -> Result<ExitCode> {
    ensure!(options.url.scheme_str() == Some("http"), "{} is not an http:// address", options.url);
    let host = options.url.host().context("find the host in --url")?;
    let address = format!("{host}:{}", options.url.port_u16().unwrap_or(80));

    let mut interrupts = Interrupts::listen()?;
    let stop = CancellationToken::new();
    let start = Instant::now();
    let schedule = Arc::new(Schedule::new(start, options.rate, Duration::from_secs(options.duration)));
    let orders = Arc::new(order::Orders::new(options.users));
    let mut tallies = Vec::new();
    let mut workers = JoinSet::new();
    for _ in 0..options.connections {
        let worker = Worker::new(&address, schedule.clone(), orders.clone(), stop.clone());
        tallies.push(worker.tally());
        workers.spawn(worker.run());
    }

    let mut display = Display::new();
    let mut total = Tally::new();
    let mut seconds = interval_at(start + Duration::from_secs(1), Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut shown = start;
    loop {
        tokio::select! {
            // The last worker has ended: each ends by itself when the time is over.
            ended = workers.join_next() => match ended {
                Some(outcome) => outcome.context("run a connection")?,
                None => break,
            },
            now = seconds.tick() => {
                let second = take_all(&tallies);
                display.second(now - start, &second, now - shown);
                shown = now;
                total.add(&second);
            }
            () = interrupts.next() => stop.cancel(),
        }
    }
    total.add(&take_all(&tallies));
    display.summary(&total, start.elapsed(), schedule.unsent());
    Ok(if total.created() > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was counted since the last call.
fn take_all(tallies: &[tally::Shared]) -> Tally {
    let mut sum = Tally::new();
    for tally in tallies {
        sum.add(&tally.take());
    }
    sum
}
