//! `orderflow-dev load`: sends orders and shows the responses.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use hyper::Uri;
use orderflow_testbed::load::{Load, Orders, Plan, Tally};
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval_at, timeout},
};

use crate::interrupt::Interrupts;
use display::Display;

mod display;

/// The longest wait for the first connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Options {
    /// Address of the API; http only
    #[arg(long, env = "LOAD_URL", default_value = "http://127.0.0.1:8080")]
    url: Uri,
    /// Orders per second over all connections; 0 sends as fast as they are answered
    #[arg(long, env = "LOAD_RATE", default_value_t = 0)]
    rate: u32,
    /// Number of connections, each with one order in flight
    #[arg(long, env = "LOAD_CONNECTIONS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Seconds to send for
    #[arg(long, env = "LOAD_DURATION", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration: u64,
    /// Number of users that order, spread evenly over the alphabet and so over the shards
    #[arg(long, env = "LOAD_USERS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
}

pub(super) async fn run(options: Options) -> Result<ExitCode> {
    ensure!(options.url.scheme_str() == Some("http"), "{} is not an http:// address", options.url);
    let host = options.url.host().context("find the host in --url")?;
    let address = format!("{host}:{}", options.url.port_u16().unwrap_or(80));

    timeout(CONNECT_WITHIN, TcpStream::connect(&address))
        .await
        .map_err(|_| anyhow!("no answer in {CONNECT_WITHIN:?}"))
        .and_then(|connected| Ok(connected?))
        .with_context(|| format!("connect to {address}: is make up running? (--url, LOAD_URL)"))?;
    let mut interrupts = Interrupts::listen()?;
    let plan = Plan {
        address,
        rate: options.rate,
        connections: options.connections,
        duration: Duration::from_secs(options.duration),
    };
    let mut load = Load::start(&plan, Orders::new(options.users));
    let start = load.started();

    let mut display = Display::new();
    let mut total = Tally::default();
    let mut seconds = interval_at(start + Duration::from_secs(1), Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut shown = start;
    loop {
        tokio::select! {
            ended = load.ended() => break ended?,
            now = seconds.tick() => {
                let second = load.take();
                display.second(now - start, &second, now - shown);
                shown = now;
                total.add(&second);
            }
            () = interrupts.next() => load.stop(),
        }
    }
    total.add(&load.take());
    display.summary(&total, start.elapsed(), load.unsent());
    Ok(if total.succeeded() > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
