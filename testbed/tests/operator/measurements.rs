//! Measurements of times and counts. They are printed, never asserted; run them by hand with `cargo test --workspace
//! --features … --test operator measurements:: -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Operator, Service, eventually};
use serde_json::json;

use crate::support::{World, metrics, reconciles};

const RESOURCES: usize = 200;

fn resident_megabytes(operator: &Operator) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", operator.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
}

/// Returns the upper bounds of the buckets that hold the quantiles.
async fn quantiles(operator: &Operator) -> Result<String> {
    let metrics = metrics(operator).await?;
    let buckets: Vec<(String, u64)> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("orderflow_operator_reconcile_duration_seconds_bucket{le=\""))
        .filter_map(|line| line.split_once("\"} "))
        .filter_map(|(bound, count)| Some((bound.to_owned(), count.parse().ok()?)))
        .collect();
    let all = buckets.last().context("no buckets")?.1;
    let at = |quantile: f64| {
        let wanted = (all as f64 * quantile).ceil() as u64;
        buckets.iter().find(|(_, count)| *count >= wanted).map_or("?", |(bound, _)| bound.as_str())
    };
    Ok(format!("of {all}: p50 ≤ {} s, p99 ≤ {} s", at(0.5), at(0.99)))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measurements take minutes"]
async fn of_one_resource() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    println!("RSS idle: {} MB", resident_megabytes(&operator)?);
    let (before, began) = (world.requests()?.len(), Instant::now());
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    println!("schemas, bucket, topics and Deployments: {:?}", began.elapsed());
    world.wait_for("Ready", "True", "Available").await?;
    println!("ready: {:?}", began.elapsed());
    world.settled(&operator).await?;
    let first = reconciles(&operator).await?;
    println!("until settled: {} requests in {first} reconciles", world.requests()?.len() - before);
    let (before, writes) = (world.requests()?.len(), world.writes()?.len());
    for _ in 0..10 {
        world.force_reconcile(&operator).await?;
    }
    let (after, reconciled) = (world.requests()?, reconciles(&operator).await? - first);
    let answered = after[before..].iter().filter(|request| !request.contains("leases/")).count();
    println!(
        "settled: {answered} requests in {reconciled} reconciles, {} writes: {:?}",
        world.writes()?.len() - writes,
        &after[before..].iter().take(8).collect::<Vec<_>>()
    );
    println!("reconciles {}", quantiles(&operator).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measurements take minutes"]
async fn of_two_hundred_resources() -> Result<()> {
    let world = World::new().await?;
    for number in 0..RESOURCES {
        let dsn = world.stack.postgres(number % 2 + 1).create_database(&format!("figure_{number}")).await?;
        world.put_secret(&format!("figure-{number}"), &[("dsn", &dsn)]).await?;
    }
    let operator = world.operator_with(&[("PROBE_SECONDS", "60")]).await?;
    let _kubelet = world.kubelet();
    println!("RSS idle: {} MB", resident_megabytes(&operator)?);
    let began = Instant::now();
    for number in 0..RESOURCES {
        let orderflow = world.orderflow_with(&json!({
            "metadata": { "name": format!("figure-{number}") },
            "spec": {
                "shards": [{ "name": "all", "users": "A-Z", "dsnSecretRef": { "name": format!("figure-{number}"), "key": "dsn" } }],
                "bucket": { "name": format!("figure-{number}") },
                "topic": { "name": format!("figure-{number}"), "partitions": 1 },
                "producer": { "replicas": 1 },
                "consumer": { "replicas": 1 },
            },
        }));
        world.create(orderflow).await?;
    }
    eventually("all resources to be ready", Duration::from_secs(900), async || {
        let metrics = metrics(&operator).await?;
        let ready = metrics
            .lines()
            .filter(|line| line.starts_with("orderflow_operator_ready{") && line.ends_with(" 1"))
            .count();
        ensure!(ready == RESOURCES, "{ready} are ready");
        Ok(())
    })
    .await?;
    println!(
        "{RESOURCES} ready: {:?}; RSS {} MB; reconciles {}",
        began.elapsed(),
        resident_megabytes(&operator)?,
        quantiles(&operator).await?
    );
    Ok(())
}
