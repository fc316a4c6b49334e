//! Explains one finding: what the order's client sent and received, what exists of the order, and which faults happened
//! around it.

use std::fmt::Write;

use orderflow_testbed::{Isolation, postgres, read_topic};
use sqlx::Row as _;
use uuid::Uuid;

use crate::{
    checker::Finding,
    history::{History, Time},
    observation::{Observation, Sites},
    storm::Record,
    workload::Plan,
};

/// The longest time, in microseconds, between a shown fault and the order's first request or last response.
const AROUND: Time = 45_000_000;

/// Returns the explanation as text.
pub async fn explain(
    finding: &Finding,
    history: &History,
    seen: &Observation,
    record: &Record,
    beginning: Time,
    sites: &Sites,
) -> String {
    let mut text = format!("\nThe first finding: {:?}, {}\n", finding.kind, finding.what);
    let mut add = |line: String| {
        let _ = writeln!(text, "  {line}");
    };
    let at = |time: Time| format!("{:10.3} s", (time - beginning) as f64 / 1e6);
    let of_rows =
        |id: Uuid| seen.rows.iter().find(|row| row.id == id).and_then(|row| Plan::number_in(&row.product_name));
    let number = finding.attempt.or_else(|| finding.order.and_then(of_rows));
    let plan = history.plans.iter().find(|plan| Some(plan.number) == number);
    if let Some(plan) = plan {
        add(format!("plan          {}", serde_json::to_string(plan).unwrap_or_default()));
    }
    let tries: Vec<_> = history.tries.iter().filter(|tried| Some(tried.attempt) == number).collect();
    for tried in &tries {
        add(format!(
            "{}  sent to {}{}, after {} ms: {}",
            at(tried.sent),
            tried.producer,
            if tried.conflicting { " with another quantity" } else { "" },
            (tried.answered - tried.sent) / 1000,
            serde_json::to_string(&tried.outcome).unwrap_or_default()
        ));
    }
    let rows: Vec<_> = seen.rows.iter().filter(|row| Plan::number_in(&row.product_name) == number).collect();
    let mut ids: Vec<Uuid> = rows.iter().map(|row| row.id).chain(finding.order).collect();
    ids.sort_unstable();
    ids.dedup();
    for row in &rows {
        let created = row.created_at.unix_timestamp_nanos() / 1000;
        add(format!("{}  row on shard{}: {row:?}", at(created as Time), row.shard));
        match seen.receipts.get(&row.receipt_s3_key) {
            Some(receipt) => add(format!("{}  receipt {}", at(receipt.stored), row.receipt_s3_key)),
            None => add(format!("no receipt {}", row.receipt_s3_key)),
        }
    }
    for id in &ids {
        add(format!("outbox, jobs  {}", left_in_shards(sites, *id).await));
        // Uncommitted records are shown too, because they show what was tried.
        for topic in [sites.topic.clone(), sites.notifications()] {
            let records = read_topic(&sites.bootstrap, &topic, Isolation::ReadUncommitted).await.unwrap_or_default();
            let committed = read_topic(&sites.bootstrap, &topic, Isolation::ReadCommitted).await.unwrap_or_default();
            for record in records.iter().filter(|record| record.text().contains(&id.to_string())) {
                let same = |other: &&orderflow_testbed::Record| {
                    (other.partition, other.offset) == (record.partition, record.offset)
                };
                let state = if committed.iter().any(|other| same(&other)) { "committed" } else { "aborted" };
                let time = record.timestamp.unwrap_or_default() * 1000;
                add(format!("{}  {topic} {}/{} {state}", at(time), record.partition, record.offset));
            }
        }
    }
    let sent = tries.iter().map(|tried| tried.sent).min().unwrap_or(beginning);
    let answered = tries.iter().map(|tried| tried.answered).max().unwrap_or(Time::MAX - AROUND);
    for struck in record.struck.iter().filter(|struck| struck.to > sent - AROUND && struck.from < answered + AROUND) {
        let (kind, part) = (&struck.kind, &struck.part);
        add(format!("{} to {}  {kind} [{part}]", at(struck.from), at(struck.to)));
    }
    text
}

/// Returns what is left of an order in the shards' queues, and what Kafka refused.
async fn left_in_shards(sites: &Sites, id: Uuid) -> String {
    const LEFT: &str = "SELECT (SELECT count(*) FROM outbox WHERE event_id = $1) AS outbox, \
                        (SELECT count(*) FROM outbox_dead WHERE event_id = $1) AS dead, \
                        (SELECT count(*) FROM receipt_jobs WHERE order_id = $1) AS jobs, \
                        (SELECT string_agg(key, ',') FROM idempotency_keys WHERE order_id = $1) AS keys";
    let mut left = Vec::new();
    for (index, dsn) in sites.dsns.iter().enumerate() {
        let Ok(mut connection) = postgres::connect(dsn).await else { continue };
        let Ok(row) = sqlx::query(LEFT).bind(id).fetch_one(&mut connection).await else { continue };
        let count = |column| row.try_get::<i64, _>(column).unwrap_or_default();
        let keys: Option<String> = row.try_get("keys").unwrap_or_default();
        left.push(format!(
            "shard{}: outbox {}, outbox_dead {}, receipt_jobs {}, key {}",
            index + 1,
            count("outbox"),
            count("dead"),
            count("jobs"),
            keys.unwrap_or_else(|| "none".to_owned())
        ));
    }
    left.join("; ")
}
