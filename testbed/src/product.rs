//! The product's own processes, as they are shipped: producer, consumer and provisioning, from binaries beside the
//! running one.
//!
//! They listen on port 0 and log their addresses, which are read from the log since the last start: a process that was
//! started again may have others. Its `INSTANCE` stays the same.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::{
    eventually, folder, http,
    process::{Launch, Process},
    service::{Service, wait_until_answered},
    tools,
};

/// The longest until a process is live, which means that it listens: it waits for no other service.
const LIVE_DEADLINE: Duration = Duration::from_secs(20);

/// The longest that provisioning takes: four topics, a bucket and two sets of migrations take a second on an idle
/// machine.
const PROVISION_DEADLINE: Duration = Duration::from_mins(1);

/// Environment of a product process.
pub type Environment = Vec<(String, String)>;

/// The settings with which a producer or consumer starts.
#[derive(Debug, Clone)]
pub struct Builder<P> {
    folder: PathBuf,
    environment: Environment,
    instance: String,
    make: fn(Process) -> P,
    binary: &'static str,
}

impl<P: Service> Builder<P> {
    /// Sets a variable; a later value replaces an earlier one.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Sets its name in logs and, for a consumer, in its transactional id. The default is unique.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = instance.into();
        self
    }

    /// Starts the process and waits until it is live; it need not be ready.
    pub async fn start(self) -> Result<P> {
        let launch = Launch::new(
            self.instance.clone(),
            tools::product_binary(self.binary)?,
            folder::log(&self.folder, &self.instance)?,
        );
        let defaults = [("HOST", "127.0.0.1"), ("PORT", "0"), ("ADMIN_PORT", "0"), ("LOG_FORMAT", "json")];
        let launch = defaults.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value));
        let launch = launch.env("INSTANCE", &self.instance);
        let launch = self.environment.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value));
        let started = (self.make)(Process::start(launch)?);
        started.wait_until_up().await?;
        Ok(started)
    }
}

/// A running `orderflow-producer`.
#[derive(Debug)]
pub struct Producer {
    process: Process,
}

impl Producer {
    /// Builds a producer that logs below `folder` and sees `environment`.
    pub fn builder(folder: &Path, environment: Environment) -> Builder<Self> {
        builder(folder, environment, "orderflow-producer", |process| Self { process })
    }

    /// Returns the address of its API: `http://127.0.0.1:<port>`.
    pub fn url(&self) -> Result<String> {
        address(&self.process, "http")
    }

    /// Returns the address that serves all routes, if it was started with `INTERNAL_PORT`.
    pub fn internal_url(&self) -> Result<String> {
        address(&self.process, "internal")
    }

    /// Returns the address of `/livez`, `/readyz` and `/metrics`.
    pub fn admin_url(&self) -> Result<String> {
        address(&self.process, "admin")
    }

    /// Waits until it is ready.
    pub async fn ready(&self, deadline: Duration) -> Result<()> {
        wait_until_ready(&self.process, deadline).await
    }

    /// Returns whether it publishes the events of that shard, by its metrics.
    pub async fn leads_relay(&self, shard: usize) -> Result<bool> {
        let metrics = http::client().get(format!("{}/metrics", self.admin_url()?)).send().await?.text().await?;
        Ok(metrics.lines().any(|line| line == format!("orderflow_relay_leads{{shard=\"shard{shard}\"}} 1")))
    }
}

/// A running `orderflow-consumer`.
#[derive(Debug)]
pub struct Consumer {
    process: Process,
}

impl Consumer {
    /// Builds a consumer that logs below `folder` and sees `environment`.
    pub fn builder(folder: &Path, environment: Environment) -> Builder<Self> {
        builder(folder, environment, "orderflow-consumer", |process| Self { process })
    }

    /// Returns the address of `/livez`, `/readyz` and `/metrics`.
    pub fn admin_url(&self) -> Result<String> {
        address(&self.process, "admin")
    }

    /// Waits until it is ready.
    pub async fn ready(&self, deadline: Duration) -> Result<()> {
        wait_until_ready(&self.process, deadline).await
    }
}

impl Service for Producer {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            wait_until_live(&self.process).await?;
            // A separate thread writes the log, which may be a little behind.
            eventually("the API's address in the log", LIVE_DEADLINE, async || self.url()).await.map(drop)
        })
    }
}

impl Service for Consumer {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_live(&self.process))
    }
}

/// Runs the real `orderflow-provision` to its end: migrations, bucket, topics.
pub async fn provision(folder: &Path, environment: Environment) -> Result<()> {
    let launch =
        Launch::new("provision", tools::product_binary("orderflow-provision")?, folder::log(folder, "provision")?);
    let launch = environment.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value));
    let provision = Process::start(launch)?;
    let status = provision.wait_for_exit(PROVISION_DEADLINE).await?;
    ensure!(
        status.success(),
        "provision ({status}), log {}:\n{}",
        provision.log_path().display(),
        provision.log_since_start()
    );
    Ok(())
}

/// The result of `orderflow-producer verify`.
#[derive(Debug)]
pub struct Verified {
    pub status: ExitStatus,
    /// The report and the log.
    pub output: String,
}

/// Runs the real `orderflow-producer verify` to its end.
pub async fn verify(
    folder: &Path,
    environment: Environment,
    arguments: &[&str],
    deadline: Duration,
) -> Result<Verified> {
    static STARTED: AtomicUsize = AtomicUsize::new(1);
    let name = format!("verify-{}", STARTED.fetch_add(1, Ordering::Relaxed));
    let launch = Launch::new(&name, tools::product_binary("orderflow-producer")?, folder::log(folder, &name)?);
    let launch = environment.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value));
    let verify = Process::start(launch.argument("verify").arguments(arguments))?;
    let status = verify.wait_for_exit(deadline).await?;
    Ok(Verified { status, output: verify.log_since_start() })
}

/// Checks that `admin_url` answers `path` with 200.
pub async fn probe(admin_url: &str, path: &str) -> Result<()> {
    let answer = http::client().get(format!("{admin_url}{path}")).send().await.context("query the admin port")?;
    let status = answer.status();
    ensure!(status == 200, "{path} answered {status}: {}", answer.text().await.unwrap_or_default());
    Ok(())
}

fn builder<P>(folder: &Path, environment: Environment, binary: &'static str, make: fn(Process) -> P) -> Builder<P> {
    static STARTED: AtomicUsize = AtomicUsize::new(1);
    let role = binary.trim_start_matches("orderflow-");
    let instance = format!("{role}-{}", STARTED.fetch_add(1, Ordering::Relaxed));
    Builder { folder: folder.to_owned(), environment, instance, make, binary }
}

async fn wait_until_live(process: &Process) -> Result<()> {
    wait_for(process, "/livez", LIVE_DEADLINE).await
}

async fn wait_until_ready(process: &Process, deadline: Duration) -> Result<()> {
    wait_for(process, "/readyz", deadline).await
}

async fn wait_for(process: &Process, path: &str, deadline: Duration) -> Result<()> {
    let question = format!("answer {path}");
    wait_until_answered(process, &question, deadline, || async { probe(&address(process, "admin")?, path).await }).await
}

/// Returns the URL of one of the process's servers, from its line `{"message":"listening","server":…,"address":…}`.
pub(crate) fn address(process: &Process, server: &str) -> Result<String> {
    process
        .log_since_start()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["message"] == "listening" && line["server"] == server)
        .and_then(|line| Some(format!("http://{}", line["address"].as_str()?)))
        .with_context(|| format!("{} has not logged where its {server} server listens", process.name()))
}
