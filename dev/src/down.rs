//! `orderflow-dev down`: stops what runs, removes its data, and prints what it has removed.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orderflow_testbed::wait::eventually;

use crate::home::{self, Claim, Home, Location};

/// The longest a stop takes: six processes with 20 s of grace each, should all of them hang.
const STOP_DEADLINE: Duration = Duration::from_secs(150);

pub(super) async fn run(location: &Location) -> Result<ExitCode> {
    if !home::is_ours(&location.data)? {
        println!("Nothing to remove: {} has no data of orderflow-dev.", location.data.display());
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(pid) = home::holder(&location.data)? {
        println!("Stopping orderflow-dev up (pid {pid}).");
        match kill(Pid::from_raw(pid), Signal::SIGTERM) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("signal pid {pid}")),
        }
    }
    let home = eventually("orderflow-dev up to stop", STOP_DEADLINE, || async {
        match Home::claim(&location.data) {
            Ok(Claim::Ours(home)) => Ok(Ok(home)),
            Ok(Claim::Taken(_)) => bail!("it still runs"),
            // It would fail again.
            Err(error) => Ok(Err(error)),
        }
    })
    .await??;
    let folder = home.folder().to_owned();
    home.remove()?;
    println!("Removed the orders, events, topics and logs in {}.", folder.display());
    Ok(ExitCode::SUCCESS)
}
