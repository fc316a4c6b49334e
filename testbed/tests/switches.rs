//! `orderflow-dev up`, started as a person starts it: what its controls switch off stays off until it is switched on, and
//! the rest goes on meanwhile.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orderflow_testbed::process::Process;
use orderflow_testbed::{Launch, eventually, folder, http, port};
use serde_json::{Value, json};

/// Long enough for anything that is going to happen on two busy cores.
const PATIENCE: Duration = Duration::from_mins(4);

const PORTS: [&str; 8] = [
    "PORT",
    "ADMIN_PORT",
    "CONSUMER_ADMIN_PORT",
    "CONTROLS_PORT",
    "PG_SHARD1_PORT",
    "PG_SHARD2_PORT",
    "KAFKA_PORT",
    "S3_PORT",
];

/// A running `orderflow-dev up`. Dropping it kills it and what it has started.
struct Up {
    process: Process,
    data: std::path::PathBuf,
    api: String,
    controls: String,
    client: reqwest::Client,
}

impl Up {
    async fn start(folder: &Path) -> Result<Self> {
        let data = folder.join("up");
        let mut launch = command(folder, "orderflow-dev-up", &data)?.argument("up");
        let mut ports = Vec::new();
        for name in PORTS {
            let port = port::free()?;
            launch = launch.env(name, port.to_string());
            ports.push(port);
        }
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (api, controls) = (url(ports[0]), url(ports[3]));
        let up = Self { process: Process::start(launch)?, data, api, controls, client: http::client() };
        eventually("orderflow-dev up to show its addresses", PATIENCE, async || {
            ensure!(up.process.exit_status().is_none(), "it ended");
            let told = up.process.log_since_start();
            ensure!(told.contains(&format!("{}/controls", up.controls)), "{told}");
            Ok(())
        })
        .await?;
        Ok(up)
    }

    async fn state(&self, part: &str) -> Result<String> {
        let listed: Value = self.client.get(format!("{}/controls", self.controls)).send().await?.json().await?;
        let parts = listed["parts"].as_array().context("no parts")?;
        let found = parts.iter().find(|found| found["name"] == part).with_context(|| format!("no {part}: {listed}"))?;
        Ok(found["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Switches a part and waits until it is so.
    async fn switch(&self, part: &str, running: bool) -> Result<()> {
        let answer = self
            .client
            .put(format!("{}/controls/{part}", self.controls))
            .json(&json!({"running": running}))
            .send()
            .await?;
        ensure!(answer.status() == 202, "{answer:?}");
        let wanted = if running { "running" } else { "stopped" };
        eventually(&format!("{part} to be {wanted}"), PATIENCE, async || {
            let state = self.state(part).await?;
            ensure!(state == wanted, "it is {state}");
            Ok(())
        })
        .await
    }

    /// What `orderflow-dev status` prints.
    async fn status(&self, folder: &Path) -> Result<String> {
        let status = Process::start(command(folder, "orderflow-dev-status", &self.data)?.argument("status"))?;
        ensure!(status.wait_for_exit(PATIENCE).await?.success(), "{}", status.log_since_start());
        Ok(status.log_since_start())
    }

    /// The line of `status` for a process.
    async fn status_of(&self, folder: &Path, process: &str) -> Result<String> {
        let status = self.status(folder).await?;
        let line = status.lines().find(|line| line.trim_start().starts_with(process)).map(str::to_owned);
        line.with_context(|| format!("no {process} in:\n{status}"))
    }

    /// Places an order and returns its status code and its id.
    async fn place(&self, user: &str) -> Result<(u16, String)> {
        let order = json!({"user_id": user, "product_name": "Lamp", "quantity": 1, "price": 10});
        let answer = self.client.post(format!("{}/api/orders", self.api)).json(&order).send().await?;
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
            let answer = self.client.get(format!("{}/api/orders/{order}/receipt", self.api)).send().await?;
            ensure!(answer.status() == 200, "{answer:?}");
            Ok(())
        })
        .await
    }
}

fn command(folder: &Path, name: &str, data: &Path) -> Result<Launch> {
    let launch = Launch::new(name, env!("CARGO_BIN_EXE_orderflow-dev"), folder::log(folder, name)?);
    Ok(launch.env("ORDERFLOW_DATA", data))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_switches_off_stays_off_until_it_is_switched_on() -> Result<()> {
    let folder = folder::of_this_test_process()?;
    let up = Up::start(folder).await?;
    let first = up.placed("alice").await?;
    up.receipt_stored(&first).await?;

    up.switch("shard1", false).await?;
    ensure!(up.status_of(folder, "postgres1").await?.ends_with("stopped by a person"), "status does not say so");
    ensure!(up.place("alice").await?.0 == 503, "a stopped shard took an order");
    up.placed("nora").await?;
    up.switch("shard1", true).await?;
    up.placed("alice").await?;
    ensure!(up.status_of(folder, "postgres1").await?.ends_with("healthy"), "status does not say that it runs");

    up.switch("consumer", false).await?;
    up.switch("kafka", false).await?;
    up.placed("alice").await?;
    // LocalStack forgets the bucket and the first receipt, and what makes the bucket again asks for Kafka as well.
    up.switch("s3", false).await?;
    let without_s3 = up.placed("nora").await?;
    up.switch("s3", true).await?;
    ensure!(up.state("kafka").await? == "stopped", "the supervisor has started what a person had switched off");
    ensure!(up.status_of(folder, "kafka").await?.ends_with("stopped by a person"), "status does not say so");
    up.switch("kafka", true).await?;
    up.switch("consumer", true).await?;
    up.receipt_stored(&without_s3).await?;
    up.receipt_stored(&first).await?;

    let told = up.process.log_since_start();
    ensure!(!told.contains("has died"), "a part that was switched off was mourned:\n{told}");
    let stopped = up.process.interrupt(PATIENCE).await?;
    ensure!(stopped.success(), "{stopped}");
    Ok(())
}
