//! The command line: settings and subcommands.

use clap::{Parser, Subcommand};
use orderflow_service::secret::Secrets;

use crate::{dlq, settings::Settings};

/// Turns each order event into one notification, exactly once, through Kafka alone
#[derive(Clone, Debug, Parser)]
#[command(name = "orderflow-consumer", version, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    pub settings: Settings,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A command that runs instead of the consumer.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Inspect the events that could not be read, and replay them after a fix
    #[command(subcommand)]
    Dlq(dlq::Command),
}

impl Secrets for Cli {
    fn read_secrets(&mut self) -> Result<(), String> {
        self.settings.read_secrets()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_valid() {
        Cli::command().debug_assert();
    }
}
