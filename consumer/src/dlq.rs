//! What an operator does about dead letters: `list` them, `show` one, and `replay` them after a fix. How that is done is in
//! `orderflow_dead_letters`; here it becomes lines of text.

mod list;
mod replay;
mod show;

use std::io::Write;

use anyhow::Context;
use clap::Subcommand;
use orderflow_dead_letters::DeadLetters;

use crate::settings::Settings;

#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List the dead letters that were not replayed yet, oldest first within each partition
    List {
        /// Also those that were replayed, as long as Kafka has them
        #[arg(long)]
        all: bool,
        /// List at most so many
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
    },
    /// Show one dead letter: its headers and its value
    Show {
        /// Partition of the dead letter, as `list` shows it
        partition: i32,
        /// Offset of the dead letter, as `list` shows it
        offset: i64,
    },
    /// Write dead letters back to where they came from, each once. Those that are there now: one that still cannot be read
    /// comes back as a new dead letter, for the next replay
    Replay {
        /// Replay at most so many
        #[arg(long)]
        limit: Option<usize>,
    },
}

/// Runs one command, with its result on `out`. Can be stopped at any time; what it did not finish did not happen.
pub fn run(settings: &Settings, command: &Command, out: &mut impl Write) -> anyhow::Result<()> {
    let dead_letters = DeadLetters::new(&settings.kafka, &settings.kafka_group_id);
    let done = match command {
        Command::List { all, limit } => list::run(&dead_letters, *all, *limit, out),
        Command::Show { partition, offset } => show::run(&dead_letters, *partition, *offset, out),
        Command::Replay { limit } => replay::run(&dead_letters, limit.unwrap_or(usize::MAX), out),
    };
    done.with_context(|| format!("dead letters at {}", settings.kafka.kafka_brokers))
}
