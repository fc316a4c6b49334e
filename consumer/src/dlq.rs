//! The `dlq` commands: `list` dead letters, `show` one, and `replay` them after a fix. This module prints the results
//! of `orderflow_dead_letters`.

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
        /// List replayed dead letters as well, if Kafka still has them
        #[arg(long)]
        all: bool,
        /// Most dead letters to list
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
    /// Write each existing dead letter back to its source partition, once. An event that still cannot be read comes
    /// back as a new dead letter, for the next replay
    Replay {
        /// Most dead letters to replay
        #[arg(long)]
        limit: Option<usize>,
    },
}

/// Runs one command and prints its result to `out`. It can be stopped at any time: an unfinished transaction has no
/// effect.
pub fn run(settings: &Settings, command: &Command, out: &mut impl Write) -> anyhow::Result<()> {
    let dead_letters = DeadLetters::new(&settings.kafka, &settings.kafka_group_id);
    let done = match command {
        Command::List { all, limit } => list::run(&dead_letters, *all, *limit, out),
        Command::Show { partition, offset } => show::run(&dead_letters, *partition, *offset, out),
        Command::Replay { limit } => replay::run(&dead_letters, limit.unwrap_or(usize::MAX), out),
    };
    done.with_context(|| format!("dead letters at {}", settings.kafka.kafka_brokers))
}
