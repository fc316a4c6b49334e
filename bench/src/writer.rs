//! The statement that stores a batch, beside COPY of the same rows into the same four tables. Both run without HTTP and
//! queue, as fast as the connections of a producer's writers can.

use std::{fmt::Write, time::Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use orderflow_testbed::postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{Effort, backing::Backing, report::Report, series::Series, usage};

/// The producer's own statement.
const STATEMENT: &str = include_str!("../../producer/src/shard/insert_batch.sql");
/// The parts of the statement that check the gate, and what stands in their place without them.
const GATE: [(&str, &str, &str); 3] = [
    ("WITH gate AS", "),\ninput AS", "WITH input AS"),
    ("FROM gate, unnest", "", "FROM unnest"),
    ("UNION ALL\nSELECT NULL", "FROM gate)", ""),
];

/// Orders in one statement, and connections to each shard: the producer's maximum and its default.
const BATCH: usize = 512;
const WRITERS: usize = 1;
/// Batches per connection.
const BATCHES: usize = 80;

const TABLES: [&str; 4] = [
    "COPY idempotency_keys (user_id, key, fingerprint, order_id, created_at) FROM STDIN",
    "COPY orders (id, user_id, product_name, quantity, price, status, receipt_s3_key, created_at, updated_at) FROM STDIN",
    "COPY outbox (event_id, order_id, user_id, payload, traceparent, created_at) FROM STDIN",
    "COPY receipt_jobs (order_id, available_at) FROM STDIN",
];

struct Row {
    id: Uuid,
    user_id: String,
    key: String,
    receipt_s3_key: String,
    payload: String,
}

pub async fn compare(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    report.section(
        "The writer alone",
        "The statement that stores 512 orders, each with key, outbox row and receipt job, over one connection to each of two shards, one \
         transaction after the other; beside the same statement without the gate, and COPY of the same rows into the same tables, a single \
         one for each table, connection and run.",
    );
    let (mut ours, mut ungated, mut copied) = <(Series, Series, Series)>::default();
    let (mut cpu, mut ungated_cpu) = <(Series, Series)>::default();
    let without_gate = without_gate()?;
    let rows = (backing.dsns().len() * WRITERS * BATCHES * BATCH) as f64;
    for _ in 0..effort.rounds {
        for (statement, rate, used) in
            [(without_gate.as_str(), &mut ungated, &mut ungated_cpu), (STATEMENT, &mut ours, &mut cpu)]
        {
            backing.empty().await?;
            let batches: Vec<_> = (0..WRITERS * 2).map(batches).collect();
            let connections = connect(backing).await?;
            let began = Instant::now();
            let stored = connections.into_iter().zip(&batches).enumerate().map(|(writer, (connection, batches))| {
                let shard = writer / WRITERS;
                let range = (statement == STATEMENT).then_some(shard as i32 + 1);
                store(connection, statement, batches, range)
            });
            let seconds: f64 = try_join_all(stored).await?.into_iter().sum();
            rate.push(rows / began.elapsed().as_secs_f64());
            used.push(seconds * 1e6 / rows);
        }

        backing.empty().await?;
        let batches: Vec<_> = (0..WRITERS * 2).map(batches).collect();
        let texts: Vec<[String; 4]> = batches.iter().map(|batches| texts(batches)).collect();
        let connections = connect(backing).await?;
        let began = Instant::now();
        try_join_all(connections.into_iter().zip(texts).map(|(connection, texts)| copy(connection, texts))).await?;
        copied.push(rows / began.elapsed().as_secs_f64());
    }
    backing.empty().await?;
    report.head(&["", "orders per second", "the writer over it"]);
    report.row(["**the writer's statement**".to_owned(), ours.to_string(), String::new()]);
    report.row(["without the gate".to_owned(), ungated.to_string(), ours.over(&ungated).to_string()]);
    report.row(["COPY".to_owned(), copied.to_string(), ours.over(&copied).to_string()]);
    report.head(&["CPU of Postgres's backend per order", "µs", "with the gate over it"]);
    report.row(["with the gate".to_owned(), cpu.to_string(), String::new()]);
    report.row(["without the gate".to_owned(), ungated_cpu.to_string(), cpu.over(&ungated_cpu).to_string()]);
    Ok(())
}

async fn connect(backing: &Backing) -> Result<Vec<PgConnection>> {
    let dsns = backing.dsns();
    let of_writers = dsns.iter().flat_map(|dsn| std::iter::repeat_n(dsn, WRITERS));
    try_join_all(of_writers.map(|dsn| async move { postgres::connect(dsn).await })).await
}

fn batches(writer: usize) -> Vec<Vec<Row>> {
    let batch = |batch: usize| {
        let mut rows: Vec<Row> = (0..BATCH).map(|row| row_of(writer, batch * BATCH + row)).collect();
        // The order that the statement requires.
        rows.sort_by(|one, other| (&one.user_id, &one.key).cmp(&(&other.user_id, &other.key)));
        rows
    };
    (0..BATCHES).map(batch).collect()
}

fn row_of(writer: usize, number: usize) -> Row {
    let (id, user_id) = (Uuid::now_v7(), format!("a-load-{}", number % 1000));
    let receipt_s3_key = format!("receipts/{user_id}/{id}.txt");
    let payload = format!(
        r#"{{"event_type":"order.created","order_id":"{id}","user_id":"{user_id}","product_name":"Wireless Mouse","quantity":2,"total":59.98,"status":"created","shard":1,"timestamp":"2026-01-01T00:00:00.123456Z"}}"#
    );
    Row { id, user_id, key: format!("load-{writer}-{number}"), receipt_s3_key, payload }
}

const FINGERPRINT: [u8; 32] = [7; 32];
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Returns the statement without what [`GATE`] lists, so that it has no parameter 13.
fn without_gate() -> Result<String> {
    let mut statement = STATEMENT.to_owned();
    for (start, end, replacement) in GATE {
        let from = statement.find(start).with_context(|| format!("the statement has no {start:?}"))?;
        let after =
            statement[from + start.len()..].find(end).with_context(|| format!("the statement has no {end:?}"))?;
        statement.replace_range(from..from + start.len() + after + end.len(), replacement);
    }
    Ok(statement)
}

/// Stores the batches, and returns the CPU seconds of the backend. `range` is that of the shard; without it the statement
/// has no gate.
async fn store(mut connection: PgConnection, statement: &str, batches: &[Vec<Row>], range: Option<i32>) -> Result<f64> {
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
    let before = usage::cpu(backend as u32)?;
    macro_rules! column {
        ($batch:ident, $of:expr) => {
            $batch.iter().map($of).collect::<Vec<_>>()
        };
    }
    let now = OffsetDateTime::now_utc();
    for batch in batches {
        let query = sqlx::query_scalar(AssertSqlSafe(statement.to_owned()))
            .bind(column!(batch, |row| row.id))
            .bind(column!(batch, |row| row.user_id.as_str()))
            .bind(vec!["Wireless Mouse"; batch.len()])
            .bind(vec![2_i32; batch.len()])
            .bind(vec![2999_i64; batch.len()])
            .bind(column!(batch, |row| row.receipt_s3_key.as_str()))
            .bind(vec![now; batch.len()])
            .bind(column!(batch, |row| row.key.as_str()))
            .bind(vec![FINGERPRINT.as_slice(); batch.len()])
            .bind(column!(batch, |row| row.payload.as_bytes()))
            .bind(vec![TRACEPARENT; batch.len()])
            .bind(vec![1_i32; batch.len()]);
        let query = match range {
            Some(range) => query.bind(vec![range]),
            None => query,
        };
        let stored: Vec<Uuid> = query.fetch_all(&mut connection).await.context("store a batch")?;
        ensure!(stored.len() == batch.len(), "{} of {} were stored", stored.len(), batch.len());
    }
    let used = usage::cpu(backend as u32)? - before;
    connection.close().await?;
    Ok(used)
}

/// Returns the input of COPY for each of [`TABLES`].
fn texts(batches: &[Vec<Row>]) -> [String; 4] {
    let hex = |bytes: &[u8]| {
        bytes.iter().fold("\\\\x".to_owned(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    };
    let fingerprint = hex(&FINGERPRINT);
    let mut texts: [String; 4] = Default::default();
    for Row { id, user_id, key, receipt_s3_key, payload } in batches.iter().flatten() {
        let payload = hex(payload.as_bytes());
        let _ = writeln!(texts[0], "{user_id}\t{key}\t{fingerprint}\t{id}\tnow");
        let _ = writeln!(texts[1], "{id}\t{user_id}\tWireless Mouse\t2\t29.99\tcreated\t{receipt_s3_key}\tnow\tnow");
        let _ = writeln!(texts[2], "{id}\t{id}\t{user_id}\t{payload}\t{TRACEPARENT}\tnow");
        let _ = writeln!(texts[3], "{id}\tnow");
    }
    texts
}

async fn copy(mut connection: PgConnection, texts: [String; 4]) -> Result<()> {
    let mut transaction = connection.begin().await?;
    for (statement, text) in TABLES.into_iter().zip(texts) {
        let mut copy = transaction.copy_in_raw(statement).await.context(statement)?;
        copy.send(text.into_bytes()).await?;
        copy.finish().await?;
    }
    transaction.commit().await?;
    Ok(connection.close().await?)
}
