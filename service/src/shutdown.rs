//! Handles SIGTERM (Kubernetes) and SIGINT (Ctrl-C): they cancel one token that every part of a process watches.

use std::{future::Future, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken;

/// The longest time from the signal to the end of the process. Kubernetes' default grace period is 30 s.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Runs `work` until it ends. The first SIGTERM or SIGINT cancels the token of `work`, which then has [`DEADLINE`] to
/// end. A second signal ends the process at once.
pub async fn until_signal<F: Future<Output = anyhow::Result<()>>>(
    work: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let signals = async {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = next().await;
        tracing::info!(signal = name, "stopping");
        stop.cancel();
        next().await;
        tracing::warn!("stopped at once by a second signal");
        std::process::exit(130);
    };
    tokio::select! {
        result = within_deadline(&stop, work(stop.clone())) => result,
        () = signals => Ok(()),
    }
}

/// Runs `work` until it ends, and at most until [`DEADLINE`] after `token` was cancelled.
async fn within_deadline<F: Future<Output = anyhow::Result<()>>>(
    token: &CancellationToken,
    work: F,
) -> anyhow::Result<()> {
    let overdue = async {
        token.cancelled().await;
        tokio::time::sleep(DEADLINE).await;
    };
    tokio::select! {
        result = work => result,
        () = overdue => anyhow::bail!("the process did not stop within {} s after the signal", DEADLINE.as_secs()),
    }
}
