//! `orderflow-dev up`: check, start, show, supervise, stop.
//!
//! Every problem that can be known before a start is reported before: an `up` that already runs, a busy port, a missing
//! program. A second Ctrl-C while stopping kills everything at once.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::Args;
use futures_util::future;
use orderflow_testbed::{eventually, tools};

use crate::{
    addresses,
    controls::Controls,
    home::{self, Claim, Home},
    interrupt::Interrupts,
    ports::Ports,
    progress::Progress,
    receipts,
    running::Running,
    supervise::supervise,
    table,
};

const LEFTOVERS_END: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Options {
    #[command(flatten)]
    location: home::Location,
    #[command(flatten)]
    ports: Ports,
}

pub(super) async fn run(options: Options) -> Result<ExitCode> {
    let home = match Home::claim(&options.location.data)? {
        Claim::Ours(home) => home,
        Claim::Taken(pid) => bail!(already_running(&options.location, pid)),
    };
    if home::read_state(home.folder()).is_some() {
        // The last `up` was killed, and the kernel may still be ending its processes.
        let _ = eventually("the ports to be free", LEFTOVERS_END, || async { options.ports.check() }).await;
        home.remove_state();
    }
    options.ports.check()?;
    check_programs(options.ports.monitoring)?;
    let controls = Controls::listen(&options.ports).await?;
    home.rotate_logs();

    let mut interrupts = Interrupts::listen()?;
    let progress = Progress::new();
    eprintln!("Starting OrderFlow in {}", home.folder().display());
    let running = tokio::select! {
        // Boxed: the parts start concurrently, and their future is too large for a stack.
        started = Box::pin(Running::start(home.folder(), &options.ports, &progress)) => started?,
        () = interrupts.next() => {
            eprintln!("Interrupted while starting; all started processes were killed.");
            return Ok(ExitCode::FAILURE);
        }
    };
    home.write_state(&running.state())?;
    println!("{}", addresses::table(&running, &home)?);

    tokio::select! {
        _ = future::join3(supervise(&running, &home), receipts::report(&running.postgres, &running.localstack), controls.serve(running.controls())) => {}
        () = interrupts.next() => {}
    }

    eprintln!("\nStopping; press Ctrl-C again to kill everything at once.");
    tokio::select! {
        () = running.stop() => {}
        // Dropping the parts kills them.
        () = interrupts.next() => eprintln!("Killed."),
    }
    drop(running);
    home.remove_state();
    Ok(ExitCode::SUCCESS)
}

/// Checks all programs at once, so that a first `up` does not fail at the last of them.
fn check_programs(monitoring: bool) -> Result<()> {
    let found = [
        tools::postgres_program("postgres").map(drop),
        tools::java().map(drop),
        tools::kafka_class_path().map(drop),
        tools::localstack_python().map(drop),
        tools::product_binary("orderflow-provision").map(drop),
        tools::product_binary("orderflow-producer").map(drop),
        tools::product_binary("orderflow-consumer").map(drop),
    ];
    let found = found.into_iter().chain(monitoring.then(|| tools::prometheus_program().map(drop)));
    let missing: Vec<String> = found.filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if !missing.is_empty() {
        bail!("nothing was started:\n  {}", missing.join("\n  "));
    }
    Ok(())
}

fn already_running(location: &home::Location, pid: Option<i32>) -> String {
    let shown = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    let addresses = match home::read_state(&location.data) {
        Some(state) => {
            let rows: Vec<_> = state.processes.into_iter().map(|process| [process.name, process.address]).collect();
            table::aligned(&rows)
        }
        None => "  still starting\n".to_owned(),
    };
    format!(
        "already running{shown} in {}:\n{addresses}stop it with Ctrl-C there{}; {} also removes the data",
        location.data.display(),
        pid.map_or_else(String::new, |pid| format!(", or with kill {pid}")),
        if location.is_default() {
            "make down".to_owned()
        } else {
            format!("orderflow-dev down --data {}", location.data.display())
        },
    )
}
