//! GET of a user's newest 50 orders, and of all users', beside the same SQL through pgbench; and how the latter grows.

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
/// Orders per shard at which the page of all users is measured.
const SIZES: [u64; 3] = [10_000, 1_000_000, 5_000_000];
/// The producer's own columns, with its check for a receipt that waits.
const COLUMNS: &str = "orders.id, orders.user_id, orders.product_name, orders.quantity, (orders.price * 100)::bigint AS cents, \
    orders.status, orders.receipt_s3_key, orders.created_at, orders.updated_at, \
    (SELECT true FROM receipt_jobs WHERE receipt_jobs.order_id = orders.id) IS NOT NULL AS receipt_pending";

/// GETs of one path, or of one path for each of 1,000 users.
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
        "16 connections, pages of 50. A user's page is one shard's; that of all users is merged from both, so its yardstick is the same query on \
         each of them, and its ratio that of pages to half the queries.",
    );
    report.head(&["", "OrderFlow, pages/s", "pgbench, queries/s", "ratio", "p50", "p99"]);
    // One more than the page, as in the producer, which needs to know whether a next page exists.
    let newest = "ORDER BY created_at DESC, id DESC LIMIT 51";
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
        backing.fill(stored, size).await?;
        stored = size;
        let pages = [("a user's", Page::OfUser, &of_user, 1.0), ("all users'", Page::OfAll, &of_all, 2.0)];
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
