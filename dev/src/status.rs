//! `orderflow-dev status`: the processes that run, their addresses and their health.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::{
    home::{self, Location},
    state::Entry,
    table::aligned,
};

/// The longest to wait for a response; healthy processes answer in milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

pub(super) async fn run(location: &Location) -> Result<ExitCode> {
    let Some(pid) = home::holder(&location.data)? else {
        println!("Nothing runs in {}.", location.data.display());
        return Ok(ExitCode::FAILURE);
    };
    let Some(state) = home::read_state(&location.data) else {
        println!("orderflow-dev up (pid {pid}) is starting or stopping in {}.", location.data.display());
        return Ok(ExitCode::SUCCESS);
    };
    let mut rows = vec![["name", "pid", "address", "health"].map(str::to_owned)];
    rows.extend(join_all(state.processes.into_iter().map(row)).await);
    println!("orderflow-dev up (pid {pid}) in {}\n\n{}", location.data.display(), aligned(&rows));
    println!("  Switch parts off and on: {}/controls", state.controls);
    Ok(ExitCode::SUCCESS)
}

async fn row(process: Entry) -> [String; 4] {
    if process.switched_off {
        return [process.name, "-".to_owned(), process.address, "stopped by a person".to_owned()];
    }
    let health = match timeout(ANSWER_WITHIN, process.probe.ask()).await {
        Ok(Ok(())) => "healthy".to_owned(),
        Ok(Err(error)) => format!("unhealthy: {error:#}"),
        Err(_) => format!("no response in {ANSWER_WITHIN:?}"),
    };
    [process.name, process.pid.to_string(), process.address, health]
}
