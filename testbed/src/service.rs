//! The operations of every started service: wait for it, stop, kill, freeze and start it again.
//!
//! All of them go through the service's one [`Process`]. A service only adds when it counts as up and how it stops
//! gracefully.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use crate::{
    process::{Process, TAIL},
    wait::eventually,
};

/// The longest a service may take to stop gracefully before it is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(20);

/// The longest one probe takes. A service that is up answers in milliseconds; a port that another program holds may
/// never answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A running service, with the same name, port and files for as long as the value lives.
pub trait Service: Send + Sync {
    fn process(&self) -> &Process;

    /// Waits until the service answers its kind of request. Fails early, with the end of its log, if it has ended.
    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>>;

    /// Stops the service gracefully; its data stays.
    fn stop(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.process().terminate(STOP_GRACE).await.map(drop) })
    }

    /// Starts the service again, whether it was stopped, killed or still runs, and waits until it is up.
    fn start_again(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.process().start_again()?;
            self.wait_until_up().await
        })
    }

    fn name(&self) -> &str {
        self.process().name()
    }

    /// Kills the service and all its descendants (`kill -9`).
    fn kill(&self) {
        self.process().kill();
    }

    /// Freezes the service and all its descendants: its connections stay open and nothing answers.
    fn pause(&self) {
        self.process().pause();
    }

    fn resume(&self) {
        self.process().resume();
    }

    fn pid(&self) -> u32 {
        self.process().pid()
    }

    fn is_running(&self) -> bool {
        self.process().is_running()
    }
}

/// Waits until `probe` succeeds. Ends at once when the process has ended, because it will never answer.
///
/// # Errors
/// Names the awaited answer, the last result and the end of the process's log when the time is over.
pub(crate) async fn wait_until_answered<F>(
    process: &Process,
    question: &str,
    deadline: Duration,
    probe: impl Fn() -> F + Sync,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send,
{
    let what = format!("{} to {question}", process.name());
    let outcome = eventually(&what, deadline, || async {
        if let Some(status) = process.exit_status() {
            return Ok(Some(status));
        }
        timeout(PROBE_TIMEOUT, probe()).await.context("no response")?.map(|()| None)
    });
    let failure = match outcome.await {
        Ok(None) => return Ok(()),
        Ok(Some(status)) => anyhow!("{} ended ({status})", process.name()),
        Err(error) => anyhow!("{error:#}; its processes:\n{}\n", process.describe()),
    };
    bail!("{failure:#}; log {}:\n{}", process.log_path().display(), process.log_tail(TAIL))
}
