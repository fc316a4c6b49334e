//! Clients that do what they can to be a burden: the log stays bounded.

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use orderflow_testbed::{Service, Stack, eventually, http, port};

use crate::support::{Api, PATIENCE, readiness};

/// Returns the log lines that were dropped for one reason, from `/metrics`.
async fn dropped_lines(admin_url: &str, reason: &str) -> Result<usize> {
    let metrics = http::client().get(format!("{admin_url}/metrics")).send().await?.text().await?;
    let name = format!("orderflow_log_lines_dropped_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

/// Nothing listens where shard 1 should be.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_fail_by_thousands_do_not_flood_the_log() -> Result<()> {
    const REQUESTS: usize = 3_000;
    let stack = Stack::shared().await?;
    let nowhere = format!("postgres://orders:orders@127.0.0.1:{}/orders", port::free()?);
    let producer = stack.producer().env("PG_SHARD1_DSN", nowhere).start().await?;
    eventually("shard 1 to be down", PATIENCE, async || {
        let shard = readiness(&producer).await?.json()["dependencies"]["shard1"].clone();
        ensure!(shard["status"] == "down", "{shard}");
        Ok(())
    })
    .await?;
    let api = Api::of(&producer)?;
    let refused: Vec<Result<()>> = stream::iter(0..REQUESTS)
        .map(async |_| api.place("alice", None).await?.expect_problem(503, "not-accepted").map(drop))
        .buffer_unordered(16)
        .collect()
        .await;
    refused.into_iter().collect::<Result<()>>()?;
    let admin = producer.admin_url()?;
    eventually("each line to be written or counted", PATIENCE, async || {
        let written = producer.process().log_since_start().matches("answered").count();
        let dropped = dropped_lines(&admin, "rate_limit").await?;
        ensure!(dropped > 0 && written + dropped == REQUESTS, "{written} written, {dropped} dropped");
        Ok(())
    })
    .await?;
    assert_eq!(dropped_lines(&admin, "slow_output").await?, 0);
    Ok(())
}
