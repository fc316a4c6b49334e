//! `orderflow-proof`: runs the proof once and reports the verdict.

use std::process::ExitCode;

use clap::Parser;
use orderflow_proof::{Settings, run};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Settings::parse()).await {
        Ok(report) if report.passed() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("orderflow-proof: {error:#}");
            ExitCode::from(2)
        }
    }
}
