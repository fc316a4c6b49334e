//! The S3 of a stack: versitygw, which keeps its objects on disk, or LocalStack, which loses them when it dies.

use std::path::Path;

use anyhow::Result;
use futures_util::future::BoxFuture;

use crate::{LocalStack, Service, Versitygw, localstack, process::Process, versitygw};

/// The S3 server to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Store {
    /// Keeps objects on disk, and so may be killed.
    Versitygw,
    /// Forgets everything when it dies.
    Localstack,
}

/// A running S3 server.
#[derive(Debug)]
pub enum ObjectStore {
    Versitygw(Versitygw),
    LocalStack(LocalStack),
}

impl ObjectStore {
    /// Starts `name` below `folder` on a free port.
    pub async fn start(folder: &Path, name: &str, store: Store) -> Result<Self> {
        match store {
            Store::Versitygw => Versitygw::start(folder, name).await.map(Self::Versitygw),
            Store::Localstack => LocalStack::start(folder, name).await.map(Self::LocalStack),
        }
    }

    /// Returns the endpoint of its S3, without a path.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Versitygw(s3) => s3.port(),
            Self::LocalStack(s3) => s3.port(),
        }
    }

    /// Returns a new S3 client.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        match self {
            Self::Versitygw(s3) => s3.s3(),
            Self::LocalStack(s3) => s3.s3(),
        }
    }

    pub fn access_key_id(&self) -> &'static str {
        match self {
            Self::Versitygw(_) => versitygw::ACCESS_KEY_ID,
            Self::LocalStack(_) => localstack::ACCESS_KEY_ID,
        }
    }

    pub fn secret_access_key(&self) -> &'static str {
        match self {
            Self::Versitygw(_) => versitygw::SECRET_ACCESS_KEY,
            Self::LocalStack(_) => localstack::SECRET_ACCESS_KEY,
        }
    }

    fn service(&self) -> &dyn Service {
        match self {
            Self::Versitygw(s3) => s3,
            Self::LocalStack(s3) => s3,
        }
    }
}

impl Service for ObjectStore {
    fn process(&self) -> &Process {
        self.service().process()
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        self.service().wait_until_up()
    }
}
