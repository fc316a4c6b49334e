//! What a run of the proof can be asked.

use std::path::PathBuf;

use clap::Parser;
use orderflow_testbed::Store;

/// Breaks a running OrderFlow in every way it knows while orders flow, then checks that each order is everywhere, once.
///
/// It starts all that it needs, on loopback. Programs built with failpoints must be beside it.
#[derive(Debug, Clone, Parser)]
#[command(name = "orderflow-proof", version, max_term_width = 120)]
pub struct Settings {
    /// What orders and faults are drawn from; the same gives the same ones. Absent: by chance
    #[arg(long, env = "SEED")]
    pub seed: Option<u64>,
    /// How long faults happen, in minutes; from 2 on it takes as long as it must, at most twice that, until each kind of
    /// fault has happened
    #[arg(long, env = "MINUTES", default_value_t = 4.0)]
    pub minutes: f64,
    /// Orders per second
    #[arg(long, env = "RATE", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Where receipts go
    #[arg(long, env = "STORE", value_enum, default_value_t = Store::Versitygw)]
    pub store: Store,
    /// Folder for data, logs and history; absent: one below the temp folder. Data goes after a run that passed
    #[arg(long, env = "FOLDER")]
    pub folder: Option<PathBuf>,
}
