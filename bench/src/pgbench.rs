//! The yardstick of all work that Postgres does: its own load generator, with one script on both shards at once.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use orderflow_testbed::tools;
use tokio::task::spawn_blocking;

use crate::backing::Backing;

/// The time to connect, overall and per client. pgbench counts transactions from the last client's connection on, but
/// its time runs before.
const CONNECTING: Duration = Duration::from_secs(2);
const CONNECTING_EACH: Duration = Duration::from_millis(16);

/// A pgbench script on disk.
#[derive(Debug)]
pub struct Script(PathBuf);

impl Script {
    pub fn write(name: &str, text: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("orderflow-bench-{}-{name}.sql", std::process::id()));
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(Self(path))
    }

    /// Measures transactions per second of both shards together. Half of the `connections` are on each; a single one is
    /// on the first.
    pub async fn run(&self, backing: &Backing, connections: u32, length: Duration) -> Result<f64> {
        let on_each = match connections {
            1 => vec![1],
            more => vec![more / 2, more - more / 2],
        };
        let runs = backing.dsns().into_iter().zip(on_each).map(|(dsn, clients)| self.run_on(dsn, clients, length));
        Ok(try_join_all(runs).await?.iter().sum())
    }

    async fn run_on(&self, dsn: String, clients: u32, length: Duration) -> Result<f64> {
        let mut command = Command::new(tools::postgres_program("pgbench")?);
        command
            .args(["-n", "-M", "prepared", "-j", "1", "-c", &clients.to_string()])
            .args(["-T", &(length + CONNECTING + CONNECTING_EACH * clients).as_secs().to_string(), "-f"])
            .arg(&self.0)
            .arg(dsn)
            .stdin(Stdio::null());
        let output =
            spawn_blocking(move || command.output()).await.context("wait for pgbench")?.context("run pgbench")?;
        ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let rate = printed.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        rate.with_context(|| format!("find the rate in pgbench's output: {printed}"))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
