//! What an operator does about dead letters: `list` them, `show` one, and `replay` them after a fix. Needs nothing but
//! Kafka; which letters were replayed is the committed offsets of the group `<KAFKA_GROUP_ID>.dlq-replay`.

mod letters;
mod list;
mod replay;
mod show;

use std::io::Write;

use clap::Subcommand;
use orderflow_core::Topics;

use crate::Settings;

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

/// Names of what the commands work on.
struct Names {
    topics: Topics,
    /// The group whose committed offsets say what was replayed. It never has members.
    group: String,
}

/// Runs one command, with its result on `out`. Can be stopped at any time; what it did not finish did not happen.
pub fn run(settings: &Settings, command: &Command, out: &mut impl Write) -> anyhow::Result<()> {
    let names = Names {
        topics: Topics::named(&settings.kafka.kafka_topic),
        group: format!("{}.dlq-replay", settings.kafka_group_id),
    };
    match command {
        Command::List { all, limit } => list::run(settings, &names, *all, *limit, out),
        Command::Show { partition, offset } => show::run(settings, &names, *partition, *offset, out),
        Command::Replay { limit } => replay::run(settings, &names, limit.unwrap_or(usize::MAX), out),
    }
}
