//! `orderflow-dev`: OrderFlow on one machine, without containers. The story is in `orderflow_testbed::dev`.

use std::process::ExitCode;

use clap::Parser;
use orderflow_testbed::dev;

#[tokio::main]
async fn main() -> ExitCode {
    match dev::run(dev::Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("orderflow-dev: {error:#}");
            ExitCode::FAILURE
        }
    }
}
