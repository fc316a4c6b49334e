//! An honest client beside thousands of connections that hold what they were given: the producer's memory and the
//! honest client's latency, with and without them.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Service, eventually,
    load::{Load, Orders, Plan},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    task::JoinSet,
    time::sleep,
};

use crate::{
    Effort,
    backing::{Backing, PATIENCE, SHARDS_ONLY, address},
    report::Report,
    series::{Series, short},
    usage,
};

const HOSTILE: u32 = 4096;
const HONEST: u32 = 16;
/// Orders per second of the honest client, in an open loop.
const RATE: u32 = 200;
/// The value of `MAX_CONNECTIONS`: further connections wait in the kernel, where they cost the producer nothing.
const PLACES: &str = "4224";
/// The memory limit in MiB, as in the examples.
const LIMIT: f64 = 256.0;
/// Time for refused connections to come again, and for temporary memory to be freed.
const SETTLING: Duration = Duration::from_secs(5);
/// Orders of the largest size: 500 of them are a list of almost a megabyte.
const LARGE: &str = "INSERT INTO orders (id, user_id, product_name, quantity, price, status, receipt_s3_key, created_at, updated_at) \
    SELECT gen_random_uuid(), repeat('a', 100), repeat('😀', 255), 2, 29.99, 'created', 'receipts/' || repeat('a', 100) || '/' || n || '.txt', \
    timestamptz '2036-01-01' + n * interval '1 ms', timestamptz '2036-01-01' + n * interval '1 ms' FROM generate_series(1, 1000) AS n";

pub async fn measure(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    report.section(
        "Hostile connections",
        "An open loop of 200 orders/s over 16 connections, for as long without and then with 4,096 further connections to the same \
         producer: a third asks for the largest list and reads nothing, a third sends a body of 64 KiB but for its end, a third a head of \
         15 KiB but for its end. Those that are ended come again. Relay and receipts are paused.",
    );
    let (mut alone, mut beside, mut before, mut most) = <(Series, Series, Series, Series)>::default();
    for _ in 0..effort.rounds {
        backing.empty().await?;
        backing.execute(LARGE).await?;
        let producer = backing.producer_with(SHARDS_ONLY, &[("MAX_CONNECTIONS", PLACES)]).await?;
        let address = address(&producer.url()?);
        let plan = Plan { address: address.clone(), rate: RATE, connections: HONEST, duration: PATIENCE };
        let mut load = Load::start(&plan, Orders::new(1000));
        let p99 = async |load: &Load| {
            sleep(Duration::from_secs(1)).await;
            load.take();
            sleep(effort.length).await;
            let tally = load.take();
            if let Some((outcome, count)) = tally.others().next() {
                eprintln!("    {count} of {} answered {}", tally.sent(), outcome.name());
            }
            ensure!(tally.succeeded() > 0, "no order was accepted");
            Ok(tally.latency(0.99).as_secs_f64() * 1e3)
        };
        alone.push(p99(&load).await?);
        before.push(usage::resident(producer.pid())?);
        let hostile = Hostile::start(&address, HOSTILE);
        eventually("all hostile connections", PATIENCE, async || {
            let connected = hostile.connected.load(Ordering::Relaxed);
            ensure!(connected >= HOSTILE, "{connected} of {HOSTILE}");
            Ok(())
        })
        .await?;
        sleep(SETTLING).await;
        beside.push(p99(&load).await?);
        most.push(usage::resident_at_most(producer.pid())?);
        drop(hostile);
        load.stop();
        load.ended().await?;
    }
    let milliseconds = |series: &Series| format!("{} ms", short(series.median()));
    report.head(&["", "alone", "beside 4,096 hostile connections", "ratio"]);
    report.row([
        "p99 of the honest client".to_owned(),
        milliseconds(&alone),
        milliseconds(&beside),
        beside.over(&alone).to_string(),
    ]);
    report.row(["producer's memory, MiB".to_owned(), before.to_string(), format!("{most} at most"), String::new()]);
    ensure!(most.median() <= LIMIT, "the producer took {} MiB, over its limit of {LIMIT}", short(most.median()));
    Ok(())
}

/// Connections that are held until this is dropped.
struct Hostile {
    connected: Arc<AtomicU32>,
    _tasks: JoinSet<()>,
}

impl Hostile {
    fn start(address: &str, count: u32) -> Self {
        let connected = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let (address, connected) = (address.to_owned(), connected.clone());
            tasks.spawn(async move {
                let mut is_first = true;
                loop {
                    let held = hold(&address, number, || {
                        if std::mem::take(&mut is_first) {
                            connected.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    // It was ended or refused, and connects again.
                    let _ = held.await;
                    sleep(Duration::from_millis(500)).await;
                }
            });
        }
        Self { connected, _tasks: tasks }
    }
}

/// Holds one connection until the producer ends it.
async fn hold(address: &str, number: u32, connected: impl FnOnce()) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(address.parse().context("parse the producer's address")?).await?;
    let request = match number % 3 {
        0 => format!("GET /api/orders?limit=500 HTTP/1.1\r\nhost: {address}\r\n\r\n"),
        1 => format!(
            "POST /api/orders HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: 65536\r\n\r\n{}",
            " ".repeat(65_000)
        ),
        _ => format!("GET /health HTTP/1.1\r\nhost: {address}\r\nx-filling: {}", "x".repeat(15 * 1024)),
    };
    stream.write_all(request.as_bytes()).await?;
    connected();
    if number.is_multiple_of(3) {
        return pending().await;
    }
    while stream.read(&mut [0; 1024]).await? > 0 {}
    Ok(())
}
