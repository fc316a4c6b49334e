//! The command line: the settings, and what to do with them.

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

/// What to do instead of consuming.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Inspect the events that could not be read, and send them back after a fix
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
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
