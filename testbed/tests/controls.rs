//! `orderflow-dev up`, started as a person starts it. A part that its controls switch off stays off until it is
//! switched on, while the rest keeps running.

#[path = "browser/up.rs"]
mod up;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{eventually, folder, http, process::Process, wait::PATIENCE};
use serde_json::{Value, json};

use up::{Up, command};

impl Up {
    /// Returns the state of a part, as the controls report it.
    async fn state(&self, part: &str) -> Result<String> {
        let listed: Value = http::client().get(format!("{}/controls", self.controls)).send().await?.json().await?;
        let parts = listed["parts"].as_array().context("no parts")?;
        let found = parts.iter().find(|found| found["name"] == part).with_context(|| format!("no {part}: {listed}"))?;
        Ok(found["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Switches a part and waits for its new state.
    async fn switch(&self, part: &str, running: bool) -> Result<()> {
        let part_url = format!("{}/controls/{part}", self.controls);
        let answer = http::client().put(part_url).json(&json!({"running": running})).send().await?;
        ensure!(answer.status() == 202, "{answer:?}");
        let wanted = if running { "running" } else { "stopped" };
        eventually(&format!("{part} to be {wanted}"), PATIENCE, async || {
            let state = self.state(part).await?;
            ensure!(state == wanted, "it is {state}");
            Ok(())
        })
        .await
    }

    /// Returns the output of `orderflow-dev status`.
    async fn status(&self, folder: &Path) -> Result<String> {
        let status = Process::start(command(folder, "orderflow-dev-status")?.argument("status"))?;
        ensure!(status.wait_for_exit(PATIENCE).await?.success(), "{}", status.log_since_start());
        Ok(status.log_since_start())
    }

    /// Returns the line of `status` for a process.
    async fn status_of(&self, folder: &Path, process: &str) -> Result<String> {
        let status = self.status(folder).await?;
        let line = status.lines().find(|line| line.trim_start().starts_with(process)).map(str::to_owned);
        line.with_context(|| format!("no {process} in:\n{status}"))
    }

    /// Places an order and returns its status code and its id.
    async fn place(&self, user: &str) -> Result<(u16, String)> {
        let order = json!({"user_id": user, "product_name": "Lamp", "quantity": 1, "price": 10});
        let answer = http::client().post(format!("{}/api/orders", self.api)).json(&order).send().await?;
        let status = answer.status().as_u16();
        let order: Value = answer.json().await?;
        Ok((status, order["order"]["id"].as_str().unwrap_or_default().to_owned()))
    }

    async fn placed(&self, user: &str) -> Result<String> {
        let what = format!("an order of {user} to be taken");
        eventually(&what, PATIENCE, async || {
            let (status, id) = self.place(user).await?;
            ensure!(status == 201, "{status}");
            Ok(id)
        })
        .await
    }

    async fn receipt_stored(&self, order: &str) -> Result<()> {
        eventually("the receipt", PATIENCE, async || {
            let answer = http::client().get(format!("{}/api/orders/{order}/receipt", self.api)).send().await?;
            ensure!(answer.status() == 200, "{answer:?}");
            Ok(())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_switched_off_stays_off_until_it_is_switched_on() -> Result<()> {
    let folder = folder::for_test_process()?;
    let up = Up::start(folder).await?;
    let first = up.placed("alice").await?;
    up.receipt_stored(&first).await?;
    up.is_scraped().await?;

    up.switch("shard1", false).await?;
    ensure!(up.status_of(folder, "postgres1").await?.ends_with("stopped by a person"), "status does not report it");
    ensure!(up.place("alice").await?.0 == 503, "a stopped shard took an order");
    up.placed("nora").await?;
    up.switch("shard1", true).await?;
    up.placed("alice").await?;
    ensure!(up.status_of(folder, "postgres1").await?.ends_with("healthy"), "status does not report that it runs");

    up.switch("consumer", false).await?;
    up.switch("kafka", false).await?;
    up.placed("alice").await?;
    // LocalStack forgets the bucket and the first receipt, and the program that restores the bucket needs Kafka as
    // well.
    up.switch("s3", false).await?;
    let without_s3 = up.placed("nora").await?;
    up.switch("s3", true).await?;
    ensure!(up.state("kafka").await? == "stopped", "the supervisor started a part that a person had switched off");
    ensure!(up.status_of(folder, "kafka").await?.ends_with("stopped by a person"), "status does not report it");
    up.switch("kafka", true).await?;
    up.switch("consumer", true).await?;
    up.receipt_stored(&without_s3).await?;
    up.receipt_stored(&first).await?;

    let log = up.process.log_since_start();
    ensure!(!log.contains(" died"), "a part that was switched off was reported as dead:\n{log}");
    let stopped = up.process.interrupt(PATIENCE).await?;
    ensure!(stopped.success(), "{stopped}");
    Ok(())
}
