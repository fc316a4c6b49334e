//! Tests the API against its OpenAPI document. Schemathesis sends valid and invalid requests from `/openapi.json` and
//! checks each response against the document. `testbed/assets/schemathesis` defines which requests it may send.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Stack, folder,
    process::{Launch, Process},
    tools,
    wait::PATIENCE,
};
use serde_json::Value;

use crate::support::dependencies_up;

/// The longest time for a run, which takes about a minute.
const LONGEST: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_answered_as_the_description_says() -> Result<()> {
    let stack = Stack::shared().await?;
    let _consumer = stack.consumer().start().await?;
    let producer = stack.producer().env("DEAD_LETTER_REPLAY", "true").start().await?;
    dependencies_up(&producer, &["shard1", "shard2", "kafka", "s3"]).await?;
    producer.ready(PATIENCE).await?;

    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/schemathesis");
    let folder = folder::for_test_process()?.join("contract");
    std::fs::create_dir_all(&folder)?;
    let report = folder.join("report.json");
    let launch = Launch::new("schemathesis", tools::schemathesis()?, folder::log(&folder, "schemathesis")?);
    let launch = ["PATH", "HOME"].into_iter().fold(launch, |launch, name| match std::env::var_os(name) {
        Some(value) => launch.env(name, value),
        None => launch,
    });
    let launch = launch
        .folder(&folder)
        .env("SCHEMATHESIS_HOOKS", assets.join("hooks.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("NO_PROXY", "127.0.0.1")
        .argument("--config-file")
        .argument(assets.join("schemathesis.toml"))
        .argument("run")
        .argument(format!("{}/openapi.json", producer.url()?))
        .arguments(["--no-color", "--report", "json", "--report-json-path"])
        .argument(&report);
    let schemathesis = Process::start(launch)?;
    let status = schemathesis.wait_for_exit(LONGEST).await?;
    ensure!(status.success(), "{status}:\n{}", schemathesis.log_since_start());

    // A run that tested little would succeed as well.
    let report: Value = serde_json::from_slice(&std::fs::read(&report).context("read the report")?)?;
    let operations = &report["operations"];
    ensure!(operations["tested"] == operations["total"] && operations["total"].as_u64() > Some(10), "{operations}");
    let phases = report["phases"].as_object().context("no phases in the report")?;
    ensure!(phases.len() >= 4 && phases.values().all(|phase| phase["status"] == "success"), "{phases:?}");
    Ok(())
}
