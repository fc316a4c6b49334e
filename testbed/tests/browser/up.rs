//! `orderflow-dev up`, started as a person starts it: on ports and with data of its own.
//!
//! Used by the tests of the controls (`controls.rs`) and by those of the page that shows them.

use std::path::Path;

use anyhow::{Result, ensure};
use orderflow_testbed::{Launch, eventually, folder, http, port, process::Process, tools, wait::PATIENCE};
use serde_json::Value;

/// A running `orderflow-dev up`. Dropping it kills it and all that it has started.
pub struct Up {
    pub process: Process,
    /// The address of the API and the dashboard.
    pub api: String,
    pub controls: String,
    pub prometheus: String,
}

impl Up {
    /// Starts an `up` below `folder`, which has no other, and waits until it prints its addresses.
    pub async fn start(folder: &Path) -> Result<Self> {
        let (api, controls, prometheus) = (port::free()?, port::free()?, port::free()?);
        let mut launch = command(folder, "orderflow-dev-up")?.argument("up");
        for (name, port) in [
            ("PORT", api),
            ("CONTROLS_PORT", controls),
            ("ADMIN_PORT", port::free()?),
            ("CONSUMER_ADMIN_PORT", port::free()?),
            ("PG_SHARD1_PORT", port::free()?),
            ("PG_SHARD2_PORT", port::free()?),
            ("KAFKA_PORT", port::free()?),
            ("S3_PORT", port::free()?),
            ("PROMETHEUS_PORT", prometheus),
        ] {
            launch = launch.env(name, port.to_string());
        }
        launch = launch.env("MONITORING", "1");
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let up = Self {
            process: Process::start(launch)?,
            api: url(api),
            controls: url(controls),
            prometheus: url(prometheus),
        };
        eventually("orderflow-dev up to show its addresses", PATIENCE, async || {
            let log = up.process.log_since_start();
            ensure!(up.process.exit_status().is_none(), "it has exited: {log}");
            ensure!(log.contains(&format!("{}/controls", up.controls)), "{log}");
            Ok(())
        })
        .await?;
        Ok(up)
    }

    /// Waits until the Prometheus of `MONITORING=1` has scraped both programs and evaluates the rules.
    pub async fn is_scraped(&self) -> Result<()> {
        let ask = async |path: &str| -> Result<Value> {
            Ok(http::client().get(format!("{}/api/v1/{path}", self.prometheus)).send().await?.json().await?)
        };
        eventually("Prometheus to scrape both programs", PATIENCE, async || {
            let answer = ask("query?query=sum(up)").await?;
            ensure!(answer["data"]["result"][0]["value"][1] == "2", "{answer}");
            Ok(())
        })
        .await?;
        let rules = ask("rules").await?;
        ensure!(rules["data"]["groups"].as_array().is_some_and(|groups| !groups.is_empty()), "{rules}");
        Ok(())
    }
}

/// Returns a launch of `orderflow-dev`, for the `up` below `folder`.
pub fn command(folder: &Path, name: &str) -> Result<Launch> {
    let launch = Launch::new(name, tools::product_binary("orderflow-dev")?, folder::log(folder, name)?);
    Ok(launch.env("ORDERFLOW_DATA", folder.join("up")))
}
