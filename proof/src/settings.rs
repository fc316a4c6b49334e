//! The settings of a run of the proof.

use std::path::PathBuf;

use clap::Parser;
use orderflow_testbed::Store;

/// Injects every kind of fault into a running OrderFlow while orders flow, then checks that each order arrived
/// everywhere, once.
///
/// Starts all that it needs, on loopback. Programs built with failpoints must be beside it.
#[derive(Debug, Clone, Parser)]
#[command(name = "orderflow-proof", version, max_term_width = 120)]
pub struct Settings {
    /// Seed of orders and faults; random if absent
    #[arg(long, env = "SEED")]
    pub seed: Option<u64>,
    /// Minutes of faults. From 2 on, the run takes up to twice that, until each kind of fault has happened
    #[arg(long, env = "MINUTES", default_value_t = 4.0)]
    pub minutes: f64,
    /// Orders per second
    #[arg(long, env = "RATE", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// S3 server for the receipts
    #[arg(long, env = "STORE", value_enum, default_value_t = Store::Versitygw)]
    pub store: Store,
    /// Folder for data, logs and history; absent: one below the temp folder. A run that passes removes the data
    #[arg(long, env = "FOLDER")]
    pub folder: Option<PathBuf>,
}
