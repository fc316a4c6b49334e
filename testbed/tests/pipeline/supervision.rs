//! Long-running tasks that die. The supervisor restarts, counts and names such a task; if restarts do not help, the
//! process ends. Failpoints make the tasks die here, because no known input does.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Isolation, Service, Stack, api::Api, eventually, http, wait::PATIENCE};
use reqwest::StatusCode;
use serde_json::Value;

use crate::support::{dependencies_up, serving};

async fn get(url: &str, path: &str) -> Result<String> {
    Ok(http::client().get(format!("{url}{path}")).send().await?.text().await?)
}

/// Returns the restarts by task, from `/metrics`.
async fn restarts(admin_url: &str) -> Result<BTreeMap<String, u64>> {
    let metrics = get(admin_url, "/metrics").await?;
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("orderflow_task_restarts_total{task=\""));
    lines
        .map(|line| {
            let (task, count) = line.split_once("\"} ").context("a restart without a task")?;
            Ok((task.to_owned(), count.parse()?))
        })
        .collect()
}

/// Returns the tasks from `/readyz`, whether the process is ready or not.
async fn tasks(admin_url: &str) -> Result<Value> {
    let ready: Value = serde_json::from_str(&get(admin_url, "/readyz").await?)?;
    Ok(ready["tasks"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_panics_is_started_again_counted_and_named() -> Result<()> {
    let stack = Stack::shared().await?;
    // The first three starts of receipt workers panic, of either shard.
    let producer = stack.producer().env("FAILPOINTS", "receipts::run=3*return->off").start().await?;
    let admin = producer.admin_url()?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    for user in ["alice", "zara"] {
        let order = api.place(user, None).await?.acked(0)?;
        api.receipt_stored(&order.id).await?;
    }
    let counts = restarts(&admin).await?;
    assert_eq!(counts["receipts shard1"] + counts["receipts shard2"], 3, "{counts:?}");
    let others: u64 = counts.iter().filter(|(task, _)| !task.starts_with("receipts")).map(|(_, count)| count).sum();
    assert_eq!(others, 0, "{counts:?}");
    assert!(get(&admin, "/metrics").await?.contains("\norderflow_panics_total 3\n"));

    let tasks = tasks(&admin).await?;
    for task in [
        "writer 1 shard1",
        "relay shard2",
        "purge shard1",
        "backlog shard2",
        "probe kafka",
        "probe s3",
        "feed",
        "admin",
    ] {
        assert_eq!(tasks[task]["status"], "running", "{task}: {tasks}");
    }
    assert_eq!(tasks["receipts shard1"]["restarts"], counts["receipts shard1"], "{tasks}");
    let log = producer.process().log_since_start();
    assert_eq!(log.matches(r#""message":"panicked""#).count(), 3, "{log}");
    assert!(
        log.contains("the failpoint receipts::run panics for shard") && log.contains("orderflow_producer::"),
        "{log}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_keeps_dying_ends_the_process_and_orders_are_stored_until_then() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("FAILPOINTS", "receipts::run=return(shard1)").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let admin = producer.admin_url()?;
    eventually("/readyz to name the task", PATIENCE, async || {
        let tasks = tasks(&admin).await?;
        let reason = tasks["receipts shard1"]["reason"].as_str().unwrap_or_default();
        ensure!(tasks["receipts shard1"]["status"] == "restarting", "{tasks}");
        ensure!(reason.contains("it panicked: the failpoint receipts::run panics for shard1"), "{tasks}");
        Ok(())
    })
    .await?;
    let reply = Api::new(&producer)?.place("alice", None).await?;
    assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
    let status = producer.process().wait_for_exit(PATIENCE).await?;
    assert_eq!(status.code(), Some(1));
    let log = producer.process().log_since_start();
    assert!(log.contains("the task receipts shard1 died 11 times within 300 s"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_consumers_loop_is_started_again_and_notifies_once() -> Result<()> {
    let stack = Stack::shared().await?;
    let consumer = stack.consumer().env("FAILPOINTS", "consumer::pipeline=2*return->off").start().await?;
    let (_producer, api) = serving(&stack).await?;
    let acked = api.place_many(20).await?;
    let topic = format!("{}.notifications", stack.topic());
    eventually("all notifications", PATIENCE, async || {
        let notified = stack.read_topic(&topic, Isolation::ReadCommitted).await?.len();
        ensure!(notified == acked.len(), "{notified} of {}", acked.len());
        Ok(())
    })
    .await?;
    assert_eq!(restarts(&consumer.admin_url()?).await?["pipeline"], 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stats_name_a_source_whose_query_panics() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("FAILPOINTS", "stats::bucket=return").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let reply = Api::new(&producer)?.get("/api/stats").await?;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    let stats = reply.json();
    assert_eq!((&stats["s3"]["up"], &stats["shards"][0]["up"]), (&Value::from(false), &Value::from(true)), "{stats}");
    assert!(
        stats["s3"]["reason"].as_str().is_some_and(|reason| reason.contains("a fault of the producer's own")),
        "{stats}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stats_name_a_source_that_never_answers() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("FAILPOINTS", "stats::held-up=return").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    let request = api.request("GET", "/api/stats").timeout(PATIENCE);
    api.send(request).await?.expect_problem(503, "no-answer-in-time").map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_panics_fails_alone() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("FAILPOINTS", "http::place=1*return(alice)->off").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    api.place("alice", None).await?.expect_problem(500, "internal")?;
    assert_eq!(api.place("alice", None).await?.status, StatusCode::CREATED);
    assert!(get(&producer.admin_url()?, "/metrics").await?.contains("\norderflow_panics_total 1\n"));
    Ok(())
}
