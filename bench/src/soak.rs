//! Ten minutes of about as many orders as all parts keep up with on two cores: memory must not grow.

use std::time::Duration;

use anyhow::Result;
use orderflow_testbed::{
    Service,
    load::{Load, Orders, Plan},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    backing::{ALL, Backing, GROUP, PATIENCE, address},
    post,
    report::Report,
    series::{Series, short},
    usage,
};

const MINUTES: u32 = 10;
const RATE: u32 = 1000;
const CONNECTIONS: u32 = 64;
const USERS: u64 = 1000;
/// The pause between two samples of the processes.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);

pub async fn measure(backing: &Backing, report: &mut Report) -> Result<()> {
    report.section(
        "Ten minutes at 1,000 orders/s",
        "An open loop over 64 connections, with relay, consumer and receipts at work. Memory is what is resident, sampled every 2 s; what \
         waits is what the minute ended with.",
    );
    report.head(&["minute", "orders/s", "producer, MiB", "consumer, MiB", "events that wait", "receipts that wait"]);
    backing.empty().await?;
    let consumer = backing.consumer(GROUP).await?;
    consumer.ready(PATIENCE).await?;
    let producer = backing.producer(ALL).await?;
    post::wait_for_relays(&producer).await?;
    let duration = Duration::from_secs(60) * MINUTES;
    let plan = Plan { address: address(&producer.url()?), rate: RATE, connections: CONNECTIONS, duration };
    let began = Instant::now();
    let mut load = Load::start(&plan, Orders::new(USERS));
    for minute in 1..=MINUTES {
        let (mut of_producer, mut of_consumer) = <(Series, Series)>::default();
        let end = began + Duration::from_secs(60) * minute;
        while Instant::now() + SAMPLE_EVERY < end {
            sleep_until(Instant::now() + SAMPLE_EVERY).await;
            of_producer.push(usage::resident(producer.pid())?);
            of_consumer.push(usage::resident(consumer.pid())?);
        }
        sleep_until(end).await;
        let orders = load.take().succeeded() as f64 / 60.0;
        let mut row = vec![minute.to_string(), short(orders), of_producer.to_string(), of_consumer.to_string()];
        for waiting in ["SELECT count(*) FROM outbox", "SELECT count(*) FROM receipt_jobs"] {
            row.push(short(backing.count(waiting).await? as f64));
        }
        report.row(row);
    }
    load.ended().await?;
    backing.empty().await
}
