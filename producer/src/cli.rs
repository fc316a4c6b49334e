//! The command line: the settings, and the commands beside the server.

use clap::{Parser, Subcommand};
use orderflow_service::secret::Secrets;

use crate::{settings::Settings, verify};

/// OrderFlow's REST API: stores orders on their users' shards, publishes their events, writes their receipts.
///
/// The shards' databases are given by the environment alone, since a DSN holds a password: PG_SHARD1_DSN,
/// PG_SHARD2_DSN, … one for each shard of SHARDS, as in postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require.
/// Beside each, PG_SHARD1_CA_FILE, PG_SHARD2_CA_FILE, … may name a PEM file with the authorities that sign that
/// server's certificate; an sslmode weaker than verify-ca then becomes verify-full.
#[derive(Clone, Debug, Parser)]
#[command(name = "orderflow-producer", version)]
pub struct Cli {
    #[command(flatten)]
    pub settings: Settings,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A command that runs instead of the server.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Compare the orders of all shards with their receipts, events and notifications, while everything runs
    ///
    /// The exit code is 0 if nothing is wrong, or everything that was is queued again; 1 if something is missing,
    /// different, duplicated or belongs to no order; 2 if the comparison could not be completed.
    Verify(verify::Options),
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
