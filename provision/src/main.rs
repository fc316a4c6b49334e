//! `orderflow-provision`: ensures, checks or removes everything that an OrderFlow depends on, and prints one line per
//! target.

#![forbid(unsafe_code)]

use std::{io::Write, process::ExitCode};

use orderflow_provision::{Line, Settings};
use orderflow_service::{install_tls, postgres, settings, telemetry};

#[tokio::main]
async fn main() -> ExitCode {
    install_tls();
    match run(&settings::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("orderflow-provision: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns true if everything succeeded.
async fn run(settings: &Settings) -> anyhow::Result<bool> {
    let dsns = postgres::shard_dsns(&settings.shards)?;
    let logs = telemetry::start(&settings.telemetry)?;
    let lines = orderflow_provision::run(settings, &dsns).await;
    // Flushes the logs, so that they come before the lines.
    drop(logs);
    print(&lines);
    Ok(lines.iter().all(|line| line.ok))
}

fn print(lines: &[Line]) {
    let width = lines.iter().map(|line| line.target.chars().count()).max().unwrap_or(0);
    let mut stdout = std::io::stdout().lock();
    for Line { target, text, .. } in lines {
        // The reader may close the pipe early; the exit code still reports the result.
        let _ = writeln!(stdout, "{target:width$}  {text}");
    }
}
