//! The CPU per order as the load grows: more users, more stored orders, more receipts and events that wait.

use std::time::{Duration, Instant};

use anyhow::Result;
use orderflow_testbed::{
    Producer, Service,
    load::{Load, Orders, Plan},
};

use crate::{
    Effort,
    backing::{ALL, Backing, NO_S3, PATIENCE, Reach, address, metric, settled},
    post,
    report::Report,
    series::Series,
    usage,
};

/// Orders per second: a rate that every part keeps up with.
const RATE: u32 = 600;
const CONNECTIONS: u32 = 16;
/// Orders that each shard stores before the first is placed.
const STORED: u64 = 5_000_000;
/// Receipts that wait on each shard.
const WAITING: u64 = 500_000;
/// Events that wait on each shard.
const BACKLOGS: [u64; 2] = [30_000, 300_000];

#[derive(Default)]
struct Cost {
    producer: Series,
    postgres: Series,
}

pub async fn measure(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    report.section(
        "Cost and size",
        "CPU per order at 600 orders/s over 16 connections, until all of it is published, deleted and receipted: what it is when there is little, \
         and when there is much. The last lines are the relay alone, on a backlog.",
    );
    report.head(&["", "producer, µs", "Postgres, µs"]);
    let few = cost(backing, effort, ALL, 1000).await?;
    row(report, "1,000 users, nothing stored", &few);
    row(report, "100,000 users", &cost(backing, effort, ALL, 100_000).await?);
    row(report, "one user", &cost(backing, effort, ALL, 1).await?);
    row(report, "S3 is away", &cost(backing, effort, NO_S3, 1000).await?);

    backing.execute(&jobs(WAITING)).await?;
    backing.execute("VACUUM (ANALYZE) receipt_jobs").await?;
    row(report, "S3 is away, and 1,000,000 receipts wait", &at(backing, effort, NO_S3, 1000, false).await?);

    backing.empty().await?;
    backing.fill(0, STORED).await?;
    row(report, "10,000,000 orders stored", &at(backing, effort, ALL, 1000, false).await?);

    for backlog in BACKLOGS {
        backing.empty().await?;
        backing.execute(&events(backlog)).await?;
        backing.execute("VACUUM (ANALYZE) outbox").await?;
        row(
            report,
            &format!("relay, {} events wait", crate::series::short(2.0 * backlog as f64)),
            &drained(backing, backlog).await?,
        );
    }
    backing.empty().await
}

async fn cost(backing: &Backing, effort: Effort, reach: Reach, users: u64) -> Result<Cost> {
    backing.empty().await?;
    at(backing, effort, reach, users, true).await
}

async fn at(backing: &Backing, effort: Effort, reach: Reach, users: u64, empty: bool) -> Result<Cost> {
    let mut cost = Cost::default();
    for _ in 0..effort.rounds {
        if empty {
            backing.empty().await?;
        }
        let producer = backing.producer(reach).await?;
        post::wait_for_relays(&producer).await?;
        // Not measured: it opens connections and makes plans.
        send(&producer, users, Duration::from_secs(1)).await?;
        let before = cpu(backing, &producer)?;
        let orders = send(&producer, users, effort.length).await?;
        settled(backing, reach).await?;
        cost.push(before, cpu(backing, &producer)?, orders);
    }
    Ok(cost)
}

async fn send(producer: &Producer, users: u64, length: Duration) -> Result<f64> {
    let plan = Plan { address: address(&producer.url()?), rate: RATE, connections: CONNECTIONS, duration: length };
    let mut load = Load::start(&plan, Orders::new(users));
    load.ended().await?;
    Ok(load.take().succeeded() as f64)
}

async fn drained(backing: &Backing, backlog: u64) -> Result<Cost> {
    let mut cost = Cost::default();
    let producer = backing.producer(NO_S3).await?;
    let before = cpu(backing, &producer)?;
    let began = Instant::now();
    let events = 2.0 * backlog as f64;
    while metric(&producer.admin_url()?, "orderflow_relay_events_total").await? + 0.5 < events {
        anyhow::ensure!(began.elapsed() < PATIENCE, "the backlog is not drained");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cost.push(before, cpu(backing, &producer)?, events);
    Ok(cost)
}

/// Returns the seconds of CPU used so far, by the producer and by both Postgres.
fn cpu(backing: &Backing, producer: &Producer) -> Result<[f64; 2]> {
    let postgres = backing.postgres.iter().map(|shard| usage::cpu(shard.pid())).sum::<Result<f64>>()?;
    Ok([usage::cpu(producer.pid())?, postgres])
}

impl Cost {
    fn push(&mut self, before: [f64; 2], after: [f64; 2], orders: f64) {
        self.producer.push((after[0] - before[0]) * 1e6 / orders);
        self.postgres.push((after[1] - before[1]) * 1e6 / orders);
    }
}

fn row(report: &mut Report, name: &str, cost: &Cost) {
    report.row([name.to_owned(), cost.producer.to_string(), cost.postgres.to_string()]);
}

/// Inserts receipt jobs of orders that do not exist: S3 is down, so no worker reads them.
fn jobs(count: u64) -> String {
    format!(
        "INSERT INTO receipt_jobs (order_id, available_at) \
         SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, now() FROM generate_series(1, {count}) AS n"
    )
}

fn events(count: u64) -> String {
    format!(
        "INSERT INTO outbox (event_id, order_id, user_id, payload, created_at) \
         SELECT id, id, 'a-' || n % 1000, convert_to('{{\"event_type\":\"order.created\",\"order_id\":\"' || id || '\",\"user_id\":\"a-' || n % 1000 \
         || '\",\"product_name\":\"Wireless Mouse\",\"quantity\":2,\"total\":59.98,\"status\":\"created\",\"shard\":1,\
         \"timestamp\":\"2026-01-01T00:00:00.123456Z\"}}', 'UTF8'), now() \
         FROM (SELECT n, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS id FROM generate_series(1, {count}) AS n) AS made"
    )
}
