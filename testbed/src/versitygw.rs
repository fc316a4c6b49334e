//! An S3 that keeps objects on disk: versitygw, on loopback.
//!
//! Promises the same port, and that buckets and objects stay, across stop, kill and start: what was answered is in the
//! page cache at least, which outlives a `kill -9` of the process. It calls no fsync, so this is no promise for a loss
//! of power. It listens to nothing but that port, and takes its own credentials alone.
//!
//! A killed PUT leaves no half object: there is the old one or the new one, with its own content type, or none as
//! before. Body and properties go to a file (and its extended attributes) in the bucket's `.sgwtmp`, which no listing
//! shows, and that is renamed to the key. What a kill leaves there stays until the bucket is deleted. As objects are
//! files, no key may be another one's folder (`a` and `a/b`).

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;

use crate::{
    folder, http, port,
    process::{Launch, Process},
    s3,
    service::{Service, wait_until_answered},
    tools,
};

pub const ACCESS_KEY_ID: &str = "orderflow-testbed";
pub const SECRET_ACCESS_KEY: &str = "objects-outlive-their-server";
pub const REGION: &str = s3::REGION;

/// It starts in 0.1 s; the rest is for a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// It hides a bucket of the same name, so it is one that no bucket has.
const HEALTH: &str = "/versitygw-health";

/// A running versitygw.
#[derive(Debug)]
pub struct Versitygw {
    process: Process,
    port: u16,
}

impl Versitygw {
    /// Starts `name` below `folder` on a free port.
    pub async fn start(folder: &Path, name: &str) -> Result<Self> {
        Self::start_on(folder, name, port::free()?).await
    }

    /// The same on a port that was chosen.
    pub async fn start_on(folder: &Path, name: &str, port: u16) -> Result<Self> {
        let files = folder::data(folder, name)?;
        folder::create(&files)?;
        let launch = Launch::new(name, tools::versitygw()?, folder::log(folder, name)?)
            .env("ROOT_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .env("ROOT_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
            // Without an address it listens to the whole network. Its other ports are closed unless asked for.
            .arguments(["--port", &format!("127.0.0.1:{port}")])
            .arguments(["--region", REGION, "--health", HEALTH])
            // As S3 does; its default closes each connection after one answer.
            .argument("--keep-alive")
            // No line in the log for each request.
            .argument("--quiet")
            // Without --sidecar, which needs no extended attributes, but writes properties to files of their own first:
            // killed then, the old body has the new properties. Where a file system lacks the attributes (tmpfs before
            // Linux 6.6), it refuses to start and says why.
            .argument("posix")
            // Its default replaces an object by a link under another name, then a rename. Killed in between, it leaves
            // an object `.<name>.sgwtmp.<number>` that a listing shows: 60 kills under load left 7.
            .argument("--disableotmp")
            .argument(&files);
        let versitygw = Self { process: Process::start(launch)?, port };
        versitygw.wait_until_up().await?;
        Ok(versitygw)
    }

    /// The endpoint of its S3, without a path.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// An S3 client of the caller's own, for this server.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        s3::client(&self.endpoint(), ACCESS_KEY_ID, SECRET_ACCESS_KEY)
    }
}

impl Service for Versitygw {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "list its buckets", START_DEADLINE, || async {
            probe(&self.endpoint()).await
        }))
    }
}

/// Whether the versitygw at `endpoint` says that it is there, and lists its buckets.
pub async fn probe(endpoint: &str) -> Result<()> {
    let answer = http::client().get(format!("{endpoint}{HEALTH}")).send().await.context("ask versitygw")?;
    answer.error_for_status().context("read versitygw's health")?;
    s3::client(endpoint, ACCESS_KEY_ID, SECRET_ACCESS_KEY).list_buckets().send().await.context("list buckets")?;
    Ok(())
}
