//! An S3 that keeps objects on disk: versitygw, on loopback.
//!
//! Promises the same port, and that buckets and objects survive stop, kill and start. An acknowledged object is at
//! least in the page cache, which outlives a `kill -9` of the process. versitygw calls no fsync, so a loss of power may
//! lose objects. It listens on that port only, and takes its own credentials only.
//!
//! A killed PUT leaves no half object: either the old or the new one exists, with its own content type, or none as
//! before. Body and properties go to a file (and its extended attributes) in the bucket's `.sgwtmp`, which no listing
//! shows, and that file is renamed to the key. The files of killed PUTs stay there until the bucket is deleted. As
//! objects are files, no key may be a folder of another one (`a` and `a/b`).

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

/// The longest a start takes: 0.1 s on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// The path of its health check. It hides a bucket of the same name, so no bucket has this name.
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

    /// Starts a versitygw on a chosen port.
    pub async fn start_on(folder: &Path, name: &str, port: u16) -> Result<Self> {
        let files = folder::data(folder, name)?;
        folder::create(&files)?;
        let launch = Launch::new(name, tools::versitygw()?, folder::log(folder, name)?)
            .env("ROOT_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .env("ROOT_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
            // Without an address it listens on all interfaces. Its other ports are closed unless configured.
            .arguments(["--port", &format!("127.0.0.1:{port}")])
            .arguments(["--region", REGION, "--health", HEALTH])
            // As S3 does; its default closes each connection after one answer.
            .argument("--keep-alive")
            // Logs no line for each request.
            .argument("--quiet")
            // Not with --sidecar, which needs no extended attributes, but writes properties to files of their own
            // first: a kill in between gives the old body the new properties. Where a file system lacks the attributes
            // (tmpfs before Linux 6.6), versitygw refuses to start and reports why.
            .argument("posix")
            // Its default replaces an object by a link under another name, then a rename. A kill in between leaves an
            // object `.<name>.sgwtmp.<number>` that a listing shows: 60 kills under load left 7.
            .argument("--disableotmp")
            .argument(&files);
        let versitygw = Self { process: Process::start(launch)?, port };
        versitygw.wait_until_up().await?;
        Ok(versitygw)
    }

    /// Returns the endpoint of its S3, without a path.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns a new S3 client for this server.
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

/// Checks that the versitygw at `endpoint` reports its health and lists its buckets.
pub async fn probe(endpoint: &str) -> Result<()> {
    let answer = http::client().get(format!("{endpoint}{HEALTH}")).send().await.context("query versitygw")?;
    answer.error_for_status().context("read versitygw's health")?;
    s3::client(endpoint, ACCESS_KEY_ID, SECRET_ACCESS_KEY).list_buckets().send().await.context("list buckets")?;
    Ok(())
}
