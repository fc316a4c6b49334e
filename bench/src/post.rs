//! POST /api/orders beside pgbench, which inserts one row of the bare table per transaction: same shards, same number
//! of connections, same disk.

use std::time::Duration;

use anyhow::{Context, Result};
use orderflow_testbed::{
    Producer, Service, eventually,
    load::{Load, Orders, Plan},
};
use tokio::time::{Instant, sleep};

use crate::{
    Effort,
    backing::{ALL, Backing, Disk, GROUP, NO_S3, PATIENCE, SHARDS_ONLY, address, metric, settled},
    cost::{PARTS, Processes},
    pgbench::Script,
    plot,
    report::Report,
    series::{Series, short},
    usage,
};

const CONNECTIONS: [u32; 4] = [1, 16, 64, 256];
/// Orders per second of the open loop, over 64 connections.
const OPEN_RATE: u32 = 1000;
const USERS: u64 = 1000;
const WARMING_UP: Duration = Duration::from_secs(1);

/// The bare row, with every index of the real table. Its id grows with time, as ours does: a random one would cost
/// pgbench more.
const INSERT: &str = "\\set r random(1, 1000000000000)
\\set u random(1, 1000)
INSERT INTO orders (id, user_id, product_name, quantity, price, status, receipt_s3_key, created_at, updated_at)
VALUES ((lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000000)::bigint), 16, '0') || lpad(to_hex(:r::bigint), 16, '0'))::uuid,
        'a-load-' || :u, 'Wireless Mouse', 2, 29.99, 'created', 'receipts/a-load-' || :u || '/' || :r || '.txt', now(), now());
";

/// The result of a closed loop.
#[derive(Debug, Clone, Copy)]
pub struct Reached {
    /// Orders answered 201, per second.
    pub rate: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// Places orders over `connections`, for a second of warm-up and then for `length`.
pub async fn post(url: &str, connections: u32, rate: u32, length: Duration) -> Result<Reached> {
    let plan = Plan { address: address(url), rate, connections, duration: WARMING_UP + length };
    let mut load = Load::start(&plan, Orders::new(USERS));
    sleep(WARMING_UP).await;
    let began = Instant::now();
    load.take();
    load.ended().await?;
    let elapsed = began.elapsed();
    let tally = load.take();
    if let Some((outcome, count)) = tally.others().next() {
        eprintln!("    {count} of {} answered {}", tally.sent(), outcome.name());
    }
    let rate = tally.succeeded() as f64 / elapsed.as_secs_f64();
    Ok(Reached { rate, p50: tally.latency(0.5), p99: tally.latency(0.99) })
}

/// Measures acceptance alone: relay and receipts are paused, because neither Kafka nor S3 can be reached.
pub async fn acceptance(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    let disk = match backing.disk {
        Disk::AsItIs => "the disk as it is",
        Disk::Slow => "each fdatasync delayed by 3 ms, for both alike",
    };
    report.section(
        &format!("POST /api/orders, acceptance alone, {disk}"),
        "One order with its idempotency key, outbox row and receipt job, over HTTP, beside `pgbench -M prepared` inserting one row of \
         the bare table per transaction. Relay and receipts are paused: Kafka and S3 are not there. Closed loop; the last line is an open one, \
         over 64 connections, whose times count from when an order was due.",
    );
    report.head(&["connections", "OrderFlow, orders/s", "pgbench, rows/s", "ratio", "p50", "p99"]);
    let script = Script::write("insert", INSERT)?;
    let milliseconds = |series: &Series| format!("{} ms", short(series.median()));
    let (mut ours_plotted, mut theirs_plotted) = (Vec::new(), Vec::new());
    for connections in CONNECTIONS {
        let (mut ours, mut theirs, mut p50, mut p99) = <(Series, Series, Series, Series)>::default();
        for _ in 0..effort.rounds {
            backing.empty().await?;
            theirs.push(script.run(backing, connections, effort.length).await?);
            backing.empty().await?;
            let producer = backing.producer(SHARDS_ONLY).await?;
            let reached = post(&producer.url()?, connections, 0, effort.length).await?;
            ours.push(reached.rate);
            p50.push(reached.p50.as_secs_f64() * 1e3);
            p99.push(reached.p99.as_secs_f64() * 1e3);
        }
        let ratio = ours.over(&theirs);
        ours_plotted.push(ours.median());
        theirs_plotted.push(theirs.median());
        let cells = [ours.to_string(), theirs.to_string(), ratio.to_string(), milliseconds(&p50), milliseconds(&p99)];
        report.row([connections.to_string()].into_iter().chain(cells));
    }
    let (mut ours, mut p50, mut p99) = <(Series, Series, Series)>::default();
    for _ in 0..effort.rounds {
        backing.empty().await?;
        let producer = backing.producer(SHARDS_ONLY).await?;
        let reached = post(&producer.url()?, 64, OPEN_RATE, effort.length).await?;
        ours.push(reached.rate);
        p50.push(reached.p50.as_secs_f64() * 1e3);
        p99.push(reached.p99.as_secs_f64() * 1e3);
    }
    let name = format!("{} orders/s are due", short(f64::from(OPEN_RATE)));
    report.row([name, ours.to_string(), String::new(), String::new(), milliseconds(&p50), milliseconds(&p99)]);
    let name = if backing.disk == Disk::Slow { "post-slow-disk" } else { "post" };
    let labels = CONNECTIONS.map(|connections| format!("{connections} connections"));
    let bars = [("OrderFlow, over HTTP", ours_plotted), ("pgbench, bare rows", theirs_plotted)];
    report.plot(name, plot::bars("orders (rows) per second", &labels, &bars));
    Ok(())
}

/// Measures the whole pipeline: relay, consumer, and receipts on the S3 that keeps objects on disk. The rate counts
/// until all accepted orders have their event, notification and receipt.
pub async fn whole(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    const CONNECTIONS: u32 = 256;
    report.section(
        "POST /api/orders with everything keeping up",
        "As above with 256 connections, with relay, consumer and receipts at work on the same two cores; the rate is what was accepted \
         over the time until the last of it had its event, receipt and notification. CPU is of all processes, per order.",
    );
    let script = Script::write("insert", INSERT)?;
    let (mut accepted, mut ours, mut theirs) = <(Series, Series, Series)>::default();
    let mut cpu: [Series; 5] = Default::default();
    let mut resident: [Series; 2] = Default::default();
    let mut written: [Series; 2] = Default::default();
    for _ in 0..effort.rounds {
        backing.empty().await?;
        theirs.push(script.run(backing, CONNECTIONS, effort.length).await?);
        backing.empty().await?;
        let consumer = backing.consumer(GROUP).await?;
        consumer.ready(PATIENCE).await?;
        let producer = backing.producer(ALL).await?;
        let notified = async || metric(&consumer.admin_url()?, "orderflow_consumer_events_total").await;
        let url = producer.url()?;
        wait_for_relays(&producer).await?;
        // Events of earlier rounds are consumed first.
        quiet(&notified).await?;
        let processes = Processes::new(backing, &backing.postgres, vec![producer.pid()], vec![consumer.pid()]);
        let (before, notified_before) = (processes.used()?, notified().await?);
        let written_before = [backing.wal_bytes().await?, backing.kafka_bytes()?];
        let plan = Plan { address: address(&url), rate: 0, connections: CONNECTIONS, duration: effort.length };
        let began = Instant::now();
        let mut load = Load::start(&plan, Orders::new(USERS));
        load.ended().await?;
        let orders = load.take().succeeded() as f64;
        accepted.push(orders / began.elapsed().as_secs_f64());
        resident[0].push(usage::resident(producer.pid())?);
        resident[1].push(usage::resident(consumer.pid())?);
        settled(backing, ALL).await?;
        eventually("every notification", PATIENCE, async || {
            let left = orders - (notified().await? - notified_before);
            anyhow::ensure!(left < 0.5, "{left} notifications are left");
            Ok(())
        })
        .await?;
        ours.push(orders / began.elapsed().as_secs_f64());
        processes.add_since(&before, orders, &mut cpu)?;
        let written_after = [backing.wal_bytes().await?, backing.kafka_bytes()?];
        for (series, (before, after)) in written.iter_mut().zip(written_before.iter().zip(written_after)) {
            series.push((after - before) / orders);
        }
    }
    report.head(&["", "OrderFlow, orders/s", "pgbench, rows/s", "ratio"]);
    report.row(["everything kept up".to_owned(), ours.to_string(), theirs.to_string(), ours.over(&theirs).to_string()]);
    let taken = accepted.over(&theirs).to_string();
    report.row(["accepted in the same time".to_owned(), accepted.to_string(), theirs.to_string(), taken]);
    report.head(&["CPU per order", "µs"]);
    for (name, series) in PARTS.iter().zip(&cpu) {
        report.row([(*name).to_owned(), series.to_string()]);
    }
    report.head(&["written per order", "bytes"]);
    for (name, series) in ["WAL of Postgres", "logs of Kafka: events, notifications, transactions"].iter().zip(&written)
    {
        report.row([(*name).to_owned(), series.to_string()]);
    }
    report.head(&["resident under full load", "MiB"]);
    for (name, series) in ["producer", "consumer"].iter().zip(&resident) {
        report.row([(*name).to_owned(), series.to_string()]);
    }
    Ok(())
}

/// Keeps Kafka busy until its JVM has compiled what it needs, as in a Kafka that has run for a while. For minutes its
/// compilers take much of the CPU that Kafka uses, and of the cores it shares with all others.
pub async fn warm(backing: &Backing) -> Result<()> {
    const STEP: Duration = Duration::from_secs(5);
    const LONGEST: Duration = Duration::from_secs(180);
    /// The share of a core that the compilers may still take.
    const QUIET: f64 = 0.05;
    backing.empty().await?;
    let consumer = backing.consumer(GROUP).await?;
    consumer.ready(PATIENCE).await?;
    let producer = backing.producer(NO_S3).await?;
    wait_for_relays(&producer).await?;
    let (url, kafka, began) = (producer.url()?, backing.kafka.pid(), Instant::now());
    loop {
        let (before, step) = (usage::compilers(kafka)?, Instant::now());
        post(&url, 64, OPEN_RATE, STEP).await?;
        let share = (usage::compilers(kafka)? - before) / step.elapsed().as_secs_f64();
        if share < QUIET || began.elapsed() > LONGEST {
            eprintln!("after {} s Kafka's compilers take {share:.2} of a core", began.elapsed().as_secs());
            return Ok(());
        }
    }
}

/// Waits until a producer leads the relays of both shards.
pub async fn wait_for_relays(producer: &Producer) -> Result<()> {
    eventually("the relays' leader", PATIENCE, async || {
        anyhow::ensure!(producer.leads_relay(1).await? && producer.leads_relay(2).await?, "a relay has no leader");
        Ok(())
    })
    .await
}

/// Waits until a counter has not changed for a second.
pub async fn quiet(counter: &impl AsyncFn() -> Result<f64>) -> Result<f64> {
    let mut last = counter().await?;
    loop {
        sleep(Duration::from_secs(1)).await;
        let now = counter().await.context("read a counter")?;
        if (now - last).abs() < 0.5 {
            return Ok(now);
        }
        last = now;
    }
}

/// Measures a closed loop of 64 connections with relay and receipts at work, as the base for loads that are a share of
/// it.
pub async fn maximum(backing: &Backing, length: Duration) -> Result<f64> {
    backing.empty().await?;
    let producer = backing.producer(ALL).await?;
    Ok(post(&producer.url()?, 64, 0, length).await?.rate)
}
