//! Three times more orders than the pipeline can accept: the rate of accepted orders, the refusals, and the state
//! afterwards.

use std::time::Duration;

use anyhow::Result;
use orderflow_testbed::{
    Service,
    load::{Load, Orders, Plan},
};

use crate::{
    Effort,
    backing::{ALL, Backing, address},
    post,
    report::Report,
    series::{Series, short},
    usage,
};

/// More connections than orders may wait, so that orders must be refused.
const CONNECTIONS: u32 = 1024;
/// The value of `SHARD_QUEUE`. With its default nothing would be refused, because each connection waits for its order,
/// and all orders find a place.
const QUEUE: &str = "128";

pub async fn measure(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    report.section(
        "Overload",
        "An open loop of three times what a closed loop of 64 connections takes, over 1,024 connections, where 128 orders may wait for a \
         shard (`SHARD_QUEUE`), with everything at work. Afterwards the closed loop again.",
    );
    let (mut before, mut during, mut refused, mut p99, mut memory, mut after) =
        <(Series, Series, Series, Series, Series, Series)>::default();
    for _ in 0..effort.rounds {
        backing.empty().await?;
        let producer = backing.producer_with(ALL, &[("SHARD_QUEUE", QUEUE)]).await?;
        let url = producer.url()?;
        post::wait_for_relays(&producer).await?;
        let maximum = post::post(&url, 64, 0, effort.length).await?.rate;
        before.push(maximum);
        let length = effort.length + Duration::from_secs(1);
        let plan =
            Plan { address: address(&url), rate: (maximum * 3.0) as u32, connections: CONNECTIONS, duration: length };
        let mut load = Load::start(&plan, Orders::new(1000));
        load.ended().await?;
        let tally = load.take();
        during.push(tally.succeeded() as f64 / length.as_secs_f64());
        refused.push(tally.others().map(|(_, count)| count).sum::<u64>() as f64 / length.as_secs_f64());
        p99.push(tally.latency(0.99).as_secs_f64() * 1e3);
        memory.push(usage::resident(producer.pid())?);
        after.push(post::post(&url, 64, 0, effort.length).await?.rate);
    }
    report.head(&["", "median (lowest to highest)"]);
    report.row(["closed loop of 64 before, orders/s".to_owned(), before.to_string()]);
    report.row(["accepted under three times as much, orders/s".to_owned(), during.to_string()]);
    report.row(["share of before".to_owned(), during.over(&before).to_string()]);
    report.row(["refused (503), per second".to_owned(), refused.to_string()]);
    report.row(["p99 of the accepted, from when they were due".to_owned(), format!("{} ms", short(p99.median()))]);
    report.row(["producer's memory, MiB".to_owned(), memory.to_string()]);
    report.row(["closed loop of 64 right after, orders/s".to_owned(), after.to_string()]);
    Ok(())
}
