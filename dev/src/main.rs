//! `orderflow-dev`: runs OrderFlow and its backing services on one machine, without containers.
//!
//! `up` starts and supervises everything, `status` shows what runs, `down` stops it and removes its data, `load` sends
//! orders.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod addresses;
mod control;
mod controls;
mod down;
mod environment;
mod home;
mod interrupt;
mod load;
mod monitoring;
mod ports;
mod progress;
mod receipts;
mod running;
mod state;
mod status;
mod supervise;
mod table;
mod up;

/// OrderFlow on this machine: two Postgres, Kafka, S3, a producer and a consumer, on loopback.
#[derive(Debug, Parser)]
#[command(name = "orderflow-dev", version, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything and keep it running until Ctrl-C
    Up(up::Options),
    /// Show what runs; exit code 1 if nothing does
    Status(home::Location),
    /// Stop everything and remove its data
    Down(home::Location),
    /// Send orders and measure the responses
    Load(load::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("orderflow-dev: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Up(options) => up::run(options).await,
        Command::Status(options) => status::run(&options).await,
        Command::Down(options) => down::run(&options).await,
        Command::Load(options) => load::run(options).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_options_of_all_commands_are_consistent() {
        Arguments::command().debug_assert();
    }
}
