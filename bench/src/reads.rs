//! GET of a user's newest 50 orders, and of everybody's, beside the same SQL through pgbench; and how the latter grows.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use http_body_util::Full;
use hyper::body::Bytes;
use orderflow_testbed::load::{Load, Plan, Request};
use tokio::time::{Instant, sleep};

use crate::{
    Effort,
    backing::{Backing, SHARDS_ONLY, address},
    pgbench::Script,
    report::Report,
    series::{Series, short},
};

const CONNECTIONS: u32 = 16;
/// Orders per shard at which everybody's page is measured.
const SIZES: [u64; 2] = [10_000, 1_000_000];
const COLUMNS: &str = "id, user_id, product_name, quantity, price, status, receipt_s3_key, created_at, updated_at";

/// GETs of one path, or of one for each of 1,000 users.
#[derive(Debug)]
enum Page {
    OfUser,
    OfAll,
}

impl Request for Page {
    fn make(&self, number: u64) -> hyper::Request<Full<Bytes>> {
        let path = match self {
            Self::OfUser => format!("/api/orders?user_id=a-{}&limit=50", number % 1000),
            Self::OfAll => "/api/orders?limit=50".to_owned(),
        };
        hyper::Request::get(path).body(Full::default()).expect("this path is valid")
    }
}

pub async fn compare(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    report.section(
        "GET /api/orders",
        "16 connections, pages of 50. A user's page is one shard's; everybody's is merged from both, so its yardstick is the same query on \
         each of them, and its ratio that of pages to half the queries.",
    );
    report.head(&["", "OrderFlow, pages/s", "pgbench, queries/s", "ratio", "p50", "p99"]);
    let newest = "ORDER BY created_at DESC, id DESC LIMIT 50";
    let of_user = Script::write(
        "of-user",
        &format!(
            "\\set u random(0, 999)\nSELECT {COLUMNS} FROM orders WHERE user_id = 'a-' || :u AND (created_at, id) < ('infinity', 'ffffffff-ffff-ffff-ffff-ffffffffffff') {newest};\n"
        ),
    )?;
    let of_all = Script::write(
        "of-all",
        &format!(
            "SELECT {COLUMNS} FROM orders WHERE (created_at, id) < ('infinity', 'ffffffff-ffff-ffff-ffff-ffffffffffff') {newest};\n"
        ),
    )?;
    backing.empty().await?;
    let mut stored = 0;
    for size in SIZES {
        fill(backing, stored, size).await?;
        stored = size;
        let pages = [("a user's", Page::OfUser, &of_user, 1.0), ("everybody's", Page::OfAll, &of_all, 2.0)];
        for (name, page, script, queries) in pages {
            let page = Arc::new(page);
            let producer = backing.producer(SHARDS_ONLY).await?;
            let (mut ours, mut theirs, mut p50, mut p99) = <(Series, Series, Series, Series)>::default();
            for _ in 0..effort.rounds {
                theirs.push(script.run(backing, CONNECTIONS, effort.length).await? / queries);
                let warming_up = Duration::from_secs(1);
                let plan = Plan {
                    address: address(&producer.url()?),
                    rate: 0,
                    connections: CONNECTIONS,
                    duration: warming_up + effort.length,
                };
                let mut load = Load::start(&plan, page.clone());
                sleep(warming_up).await;
                let began = Instant::now();
                load.take();
                load.ended().await?;
                let tally = load.take();
                anyhow::ensure!(tally.others().next().is_none(), "a page was not answered");
                ours.push(tally.succeeded() as f64 / began.elapsed().as_secs_f64());
                p50.push(tally.latency(0.5).as_secs_f64() * 1e3);
                p99.push(tally.latency(0.99).as_secs_f64() * 1e3);
            }
            let name = format!("{name} page, {} orders per shard", short(size as f64));
            let milliseconds = |series: &Series| format!("{} ms", short(series.median()));
            let cells = [ours.to_string(), theirs.to_string(), ours.over(&theirs).to_string()];
            report.row([name].into_iter().chain(cells).chain([milliseconds(&p50), milliseconds(&p99)]));
        }
    }
    backing.empty().await
}

/// Orders of 1,000 users, in the order of their time, straight into the table.
async fn fill(backing: &Backing, from: u64, to: u64) -> Result<()> {
    let insert = format!(
        "INSERT INTO orders (id, user_id, product_name, quantity, price, status, receipt_s3_key, created_at, updated_at) \
         SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'a-' || n % 1000, 'Wireless Mouse', 2, 29.99, \
         'created', 'receipts/a-' || n % 1000 || '/' || n || '.txt', timestamptz '2026-01-01' + n * interval '1 ms', \
         timestamptz '2026-01-01' + n * interval '1 ms' FROM generate_series({from}, {to} - 1) AS n"
    );
    backing.execute(&insert).await?;
    backing.execute("VACUUM (ANALYZE) orders").await?;
    backing.execute("CHECKPOINT").await
}
