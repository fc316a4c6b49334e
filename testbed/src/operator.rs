//! `orderflow-operator` as it is shipped: with a ServiceAccount of its own and the roles of its chart, never as an admin.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;

use crate::process::{Launch, Process};
use crate::product::{self, Environment};
use crate::service::{Service, wait_until_answered};
use crate::{folder, tools};

const LIVE_DEADLINE: Duration = Duration::from_secs(30);

/// Of a small command. `release` waits for a Lease.
const COMMAND_DEADLINE: Duration = Duration::from_secs(90);

/// A running `orderflow-operator run`.
#[derive(Debug)]
pub struct Operator {
    process: Process,
}

impl Operator {
    /// Starts one that logs below `folder` as `name`, and waits until it is live.
    pub async fn start(folder: &Path, name: &str, kubeconfig: &Path, environment: Environment) -> Result<Self> {
        let operator =
            Self { process: Process::start(launch(folder, name, kubeconfig, environment)?.argument("run"))? };
        operator.wait_until_up().await?;
        Ok(operator)
    }

    /// Where `/livez`, `/readyz` and `/metrics` are.
    pub fn admin_url(&self) -> Result<String> {
        product::address(&self.process, "admin")
    }
}

/// Runs one of the small commands to its end: whether it succeeded, and what it printed.
pub async fn command(
    folder: &Path,
    name: &str,
    kubeconfig: &Path,
    environment: Environment,
    command: &str,
) -> Result<(bool, String)> {
    let process = Process::start(launch(folder, name, kubeconfig, environment)?.argument(command))?;
    let status = process.wait_for_exit(COMMAND_DEADLINE).await.context("run orderflow-operator")?;
    Ok((status.success(), process.log_since_start()))
}

fn launch(folder: &Path, name: &str, kubeconfig: &Path, environment: Environment) -> Result<Launch> {
    let launch = Launch::new(name, tools::product_binary("orderflow-operator")?, folder::log(folder, name)?);
    let defaults = [
        ("HOST", "127.0.0.1"),
        ("ADMIN_PORT", "0"),
        ("LOG_FORMAT", "json"),
        ("MALLOC_ARENA_MAX", "2"),
        // The testbed's services listen there and nowhere else.
        ("ALLOW_LOOPBACK_BACKENDS", "true"),
    ];
    let launch = defaults.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value));
    let launch = launch.env("KUBECONFIG", kubeconfig).env("POD_NAME", name);
    Ok(environment.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value)))
}

impl Service for Operator {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "answer /livez", LIVE_DEADLINE, || async {
            product::probe(&self.admin_url()?, "/livez").await
        }))
    }
}
