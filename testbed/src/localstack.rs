//! The S3 of LocalStack on loopback.
//!
//! Promises the same port across stop, kill and start, and that "up" means its S3 is loaded. It keeps objects in
//! memory: a stop LOSES them, buckets included.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::{
    folder, http, port,
    process::{Launch, Process},
    s3,
    service::{Service, wait_until_answered},
    tools,
};

/// The usual credentials; LocalStack takes any.
pub const ACCESS_KEY_ID: &str = "test";
pub const SECRET_ACCESS_KEY: &str = "test";
pub const REGION: &str = s3::REGION;

const START_DEADLINE: Duration = Duration::from_secs(90);

/// A running LocalStack.
#[derive(Debug)]
pub struct LocalStack {
    process: Process,
    port: u16,
}

impl LocalStack {
    /// Starts `name` below `folder` on a free port.
    pub async fn start(folder: &Path, name: &str) -> Result<Self> {
        Self::start_on(folder, name, port::free()?).await
    }

    /// Starts a LocalStack on a chosen port.
    pub async fn start_on(folder: &Path, name: &str, port: u16) -> Result<Self> {
        let files = folder::data(folder, name)?;
        folder::create(&files)?;
        let launch = Launch::new(name, tools::localstack_python()?, folder::log(folder, name)?)
            .arguments(["-m", "localstack.runtime.main"])
            .folder(&files)
            // The default server takes only the port of that address and listens on all interfaces.
            .env("GATEWAY_SERVER", "hypercorn")
            .env("GATEWAY_LISTEN", format!("127.0.0.1:{port}"))
            .env("SERVICES", "s3")
            .env("EAGER_SERVICE_LOADING", "1")
            .env("DISABLE_EVENTS", "1")
            .env("SKIP_SSL_CERT_DOWNLOAD", "1")
            .env("DNS_ADDRESS", "0")
            // Otherwise it may take the machine for its container and write to /var/lib/localstack.
            .env("OVERRIDE_IN_DOCKER", "0")
            .env("FILESYSTEM_ROOT", files.join("filesystem"))
            // Its plugin cache is in the home folder, and two that start at once damage a common one.
            .env("HOME", &files);
        let localstack = Self { process: Process::start(launch)?, port };
        localstack.wait_until_up().await?;
        Ok(localstack)
    }

    /// Returns the endpoint of its S3, without a path.
    pub fn endpoint(&self) -> String {
        endpoint(self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns a new S3 client for this LocalStack.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        s3::client(&self.endpoint(), ACCESS_KEY_ID, SECRET_ACCESS_KEY)
    }
}

/// Returns the endpoint of the LocalStack on a port.
pub fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

impl Service for LocalStack {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "load its S3", START_DEADLINE, || async {
            probe(&self.endpoint()).await
        }))
    }
}

/// Checks that the S3 at `endpoint` reports that it runs.
pub async fn probe(endpoint: &str) -> Result<()> {
    let answer =
        http::client().get(format!("{endpoint}/_localstack/health")).send().await.context("query LocalStack")?;
    let health: Value = answer.json().await.context("read LocalStack's health")?;
    match health["services"]["s3"].as_str() {
        Some("available" | "running") => {}
        other => bail!("LocalStack's S3 is {}", other.unwrap_or("unknown")),
    }
    // A first request loads more of it, and two at once as the first get 501. So this request is the first.
    http::client().get(endpoint).send().await.context("list buckets")?.error_for_status().context("list buckets")?;
    Ok(())
}
