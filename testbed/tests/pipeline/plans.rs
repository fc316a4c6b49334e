//! The plans of the product's queries: each uses an index, however much is stored, and none scans a table. Postgres
//! itself logs the plan of every query that the product makes.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Service, Stack, eventually, wait::PATIENCE};
use reqwest::StatusCode;

use crate::support::serving;

/// Enough rows that the planner never prefers to read all of them.
const FILL: &str = "
    INSERT INTO orders (id, user_id, product_name, quantity, price, status, receipt_s3_key, created_at, updated_at)
    SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'u-' || n % 1000, 'Lamp', 1, 1, 'created', 'r/' || n,
           timestamptz '2026-01-01' + n * interval '1 ms', timestamptz '2026-01-01' + n * interval '1 ms'
    FROM generate_series(1, 50000) AS n;
    INSERT INTO idempotency_keys (user_id, key, fingerprint, order_id, created_at)
    SELECT user_id, receipt_s3_key, '\\x00', id, now() FROM orders;
    INSERT INTO receipt_jobs (order_id, available_at) SELECT id, now() + interval '1 day' FROM orders;
    INSERT INTO outbox (event_id, order_id, user_id, payload, created_at)
    SELECT id, id, user_id, '{}', now() FROM orders;
    ANALYZE;
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET session_preload_libraries = auto_explain', current_database());
        EXECUTE format('ALTER DATABASE %I SET auto_explain.log_min_duration = 0', current_database());
    END $$";

/// Queries that may scan. The stats count up to some thousands by reading that many rows. An order's trail checks the
/// outbox, which is nearly empty or, after an outage, read within the deadline of a request.
const BOUNDED: [&str; 2] = ["orders_counted", "in_outbox"];

const TABLES: [&str; 4] = ["orders", "idempotency_keys", "outbox", "receipt_jobs"];

/// A part of each query in the life of an order, and of those of the lists.
const ASKED: [&str; 7] = [
    "INSERT INTO idempotency_keys",
    "JOIN idempotency_keys",
    "FROM outbox ORDER BY seq",
    "DELETE FROM outbox",
    "UPDATE receipt_jobs",
    "DELETE FROM receipt_jobs",
    "AND user_id = ",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_query_of_the_product_reads_a_whole_table() -> Result<()> {
    let stack = Stack::shared().await?;
    for shard in [1, 2] {
        sqlx::raw_sql(FILL).execute(&mut stack.shard(shard).await?).await.context("fill the tables")?;
    }
    let (producer, api) = serving(&stack).await?;
    api.place_many(20).await?;
    for _ in 0..2 {
        let reply = api.place("alice", Some("again")).await?;
        ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
    }
    let reply = api.get("/api/orders?limit=5").await?;
    ensure!(reply.status == StatusCode::OK, "{reply:?}");
    let page = reply.json();
    let order = page["orders"][0].clone();
    let id = order["id"].as_str().context("an order without an id")?;
    let cursor = page["next_cursor"].as_str().unwrap_or_default();
    for path in [
        format!("/api/orders/{id}"),
        format!("/api/orders/{id}/trail"),
        format!("/api/orders?user_id={}", order["user_id"].as_str().unwrap_or_default()),
        format!("/api/orders?limit=5&cursor={cursor}"),
        "/api/stats".to_owned(),
    ] {
        let reply = api.get(&path).await?;
        ensure!(reply.status == StatusCode::OK, "{path}: {reply:?}");
    }
    eventually("the events and receipts to be gone", PATIENCE, async || {
        for shard in [1, 2] {
            const LEFT: &str = "SELECT (SELECT count(*) FROM outbox), \
                                (SELECT count(*) FROM receipt_jobs WHERE available_at < now() + interval '1 hour')";
            let left: (i64, i64) = sqlx::query_as(LEFT).fetch_one(&mut stack.shard(shard).await?).await?;
            ensure!(left == (0, 0), "shard {shard}: {left:?} are left");
        }
        Ok(())
    })
    .await?;
    drop(producer);

    let mut plans = Vec::new();
    for shard in [1, 2] {
        let postgres = stack.postgres(shard);
        let log = std::fs::read_to_string(postgres.process().log_path()).context("read Postgres's log")?;
        plans.extend(entries(&log).filter(|entry| entry.contains(&stack.database()) && entry.contains(" plan:\n")));
    }
    for part in ASKED {
        ensure!(plans.iter().any(|plan| plan.contains(part)), "no query with {part:?} was made");
    }
    let scans = |plan: &&String| {
        let reads_all = |table: &str| {
            plan.lines()
                .any(|line| line.split_once("Seq Scan on ").is_some_and(|(_, of)| of.split(' ').next() == Some(table)))
        };
        !BOUNDED.iter().any(|query| plan.contains(query)) && TABLES.iter().any(|table| reads_all(table))
    };
    // The test's own query of what is left does not count.
    let scanning: Vec<&String> =
        plans.iter().filter(|plan| !plan.contains("interval '1 hour'")).filter(scans).collect();
    ensure!(scanning.is_empty(), "{} queries read a whole table, as this one:\n{}", scanning.len(), scanning[0]);
    // A list that the plan does not know is searched linearly for each row.
    let searching =
        plans.iter().find(|plan| plan.lines().any(|line| line.contains("Filter: ") && line.contains("= ANY ($")));
    ensure!(searching.is_none(), "a list is searched for each row: {}", searching.map_or("", String::as_str));
    Ok(())
}

/// Returns the entries of Postgres's log, each with its continuation lines.
fn entries(log: &str) -> impl Iterator<Item = String> {
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        if line.starts_with('\t') {
            if let Some(entry) = entries.last_mut() {
                entry.push_str(line);
                entry.push('\n');
            }
        } else {
            entries.push(format!("{line}\n"));
        }
    }
    entries.into_iter()
}
