//! Support of the pipeline's tests: running producers, and the check that each order which was answered 201 exists
//! exactly once in each place.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Isolation, Producer, Record, Stack,
    api::{Acked, Api, Reply},
    eventually, http,
    wait::PATIENCE,
};
use serde_json::Value;
use sqlx::Row;

/// Waits until every order in `acked` has arrived everywhere. Then checks that each exists exactly once: one row on its
/// shard and on no other, one receipt, one committed event, one committed notification. Nothing may be left in the
/// queues. Orders that are stored but not in `acked` are fine (their outcome was unknown), but they too may exist only
/// once.
pub async fn expect_each_exactly_once(stack: &Stack, acked: &[Acked]) -> Result<()> {
    let wanted: BTreeMap<&str, &Acked> = acked.iter().map(|order| (order.id.as_str(), order)).collect();
    ensure!(wanted.len() == acked.len(), "two orders were answered with one id");
    eventually("all queues are empty", PATIENCE, async || queues_are_empty(stack).await).await?;

    let mut rows: HashMap<String, usize> = HashMap::new();
    for shard in [1, 2] {
        for (id, receipt) in stored(stack, shard).await? {
            ensure!(rows.insert(id.clone(), shard).is_none(), "order {id} is stored on both shards");
            if let Some(order) = wanted.get(id.as_str()) {
                ensure!(order.shard == format!("shard{shard}"), "order {id} is on shard {shard}: {order:?}");
                ensure!(order.receipt == receipt, "order {id} has another receipt than was answered");
            }
        }
    }
    for id in wanted.keys() {
        ensure!(rows.contains_key(*id), "order {id} was answered 201 and is not stored");
    }

    let events = exactly_one_per_order(stack, &stack.topic(), &rows).await?;
    exactly_one_per_order(stack, &format!("{}.notifications", stack.topic()), &rows).await?;
    expect_users_order(acked, &events)?;

    let objects = receipts(stack).await?;
    ensure!(objects.len() == rows.len(), "{} receipts for {} orders", objects.len(), rows.len());
    for order in acked {
        ensure!(objects.contains(&order.receipt), "no receipt {}", order.receipt);
    }
    Ok(())
}

/// Checks that the events of a user that sends one order after the other are in that order.
fn expect_users_order(acked: &[Acked], events: &[Record]) -> Result<()> {
    let sequences: HashMap<&str, usize> = acked.iter().map(|order| (order.id.as_str(), order.sequence)).collect();
    let mut last: HashMap<(i32, String), usize> = HashMap::new();
    for event in events {
        let value: Value = event.json()?;
        let (Some(id), Some(user)) = (value["order_id"].as_str(), value["user_id"].as_str()) else { continue };
        // Only users that send serially have an order to keep.
        if !user.contains("serial") {
            continue;
        }
        let Some(sequence) = sequences.get(id) else { continue };
        if let Some(before) = last.insert((event.partition, user.to_owned()), *sequence) {
            ensure!(before < *sequence, "an event of {user} overtook another");
        }
    }
    Ok(())
}

async fn queues_are_empty(stack: &Stack) -> Result<()> {
    const COUNT: &str =
        "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM receipt_jobs), (SELECT count(*) FROM outbox_dead)";
    let mut orders = 0;
    for shard in [1, 2] {
        let mut connection = stack.shard(shard).await?;
        let (outbox, receipt_jobs, dead): (i64, i64, i64) = sqlx::query_as(COUNT).fetch_one(&mut connection).await?;
        ensure!(
            (outbox, receipt_jobs, dead) == (0, 0, 0),
            "shard{shard}: {outbox} events, {receipt_jobs} receipts, {dead} dead"
        );
        orders += stored(stack, shard).await?.len();
    }
    let notifications =
        stack.read_topic(&format!("{}.notifications", stack.topic()), Isolation::ReadCommitted).await?.len();
    ensure!(notifications >= orders, "{notifications} notifications of {orders} orders");
    Ok(())
}

/// Returns id and receipt key of each order on a shard.
pub async fn stored(stack: &Stack, shard: usize) -> Result<Vec<(String, String)>> {
    let mut connection = stack.shard(shard).await?;
    let rows = sqlx::query("SELECT id::text, receipt_s3_key FROM orders").fetch_all(&mut connection).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

async fn exactly_one_per_order(stack: &Stack, topic: &str, rows: &HashMap<String, usize>) -> Result<Vec<Record>> {
    let records = stack.read_topic(topic, Isolation::ReadCommitted).await?;
    let mut counts: HashMap<String, usize> = HashMap::new();
    for record in &records {
        let value: Value = record.json()?;
        *counts.entry(value["order_id"].as_str().context("a record without order_id")?.to_owned()).or_default() += 1;
    }
    for (id, count) in &counts {
        ensure!(*count == 1, "{topic} has {count} records of order {id}");
        ensure!(rows.contains_key(id), "{topic} has a record of order {id}, which is not stored");
    }
    for id in rows.keys() {
        ensure!(counts.contains_key(id), "{topic} has no record of order {id}");
    }
    Ok(records)
}

/// Returns the keys of all objects in the bucket.
pub async fn receipts(stack: &Stack) -> Result<Vec<String>> {
    let mut pages = stack.s3().list_objects_v2().bucket(stack.bucket()).into_paginator().send();
    let mut keys = Vec::new();
    while let Some(page) = pages.next().await {
        keys.extend(page?.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
    }
    Ok(keys)
}

/// Starts a producer that is connected to both shards, with a client of it.
pub async fn serving(stack: &Stack) -> Result<(Producer, Api)> {
    let producer = stack.producer().start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    Ok((producer, api))
}

/// Starts a producer without Kafka and S3: nothing listens at their addresses.
pub async fn serving_alone(stack: &Stack) -> Result<(Producer, Api)> {
    let nowhere = format!("127.0.0.1:{}", orderflow_testbed::port::free()?);
    let producer = stack.producer().env("S3_ENDPOINT", format!("http://{nowhere}")).env("KAFKA_BROKERS", nowhere);
    let producer = producer.start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    Ok((producer, api))
}

/// Waits until `/readyz` reports each of these as up.
pub async fn dependencies_up(producer: &Producer, names: &[&str]) -> Result<()> {
    eventually(&format!("{names:?} to be up"), PATIENCE, async || {
        let readiness = readiness(producer).await?.json();
        let up = |name: &&str| readiness["dependencies"][*name]["status"] == "up";
        ensure!(names.iter().all(up), "{readiness}");
        Ok(())
    })
    .await
}

/// Returns the response of `/readyz`.
pub async fn readiness(producer: &Producer) -> Result<Reply> {
    Reply::read(http::client().get(format!("{}/readyz", producer.admin_url()?)).send().await?).await
}
