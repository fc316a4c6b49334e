//! `orderflow-producer`: settings, telemetry, run until the signal.

use std::process::ExitCode;

use clap::Parser;
use orderflow_producer::{Settings, run};
use orderflow_service::{install_tls, shutdown, telemetry};

fn main() -> ExitCode {
    install_tls();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let settings = Settings::parse();
    let logs = match telemetry::start(&settings.telemetry) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("orderflow-producer: {error:#}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start the async runtime");
    let result = runtime.block_on(async {
        let stop = shutdown::on_signal()?;
        shutdown::within_deadline(&stop, run(settings, stop.clone())).await
    });
    // A client library stuck on a dead peer must not keep the process: all that matters has been written.
    runtime.shutdown_background();
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "stopped");
        eprintln!("orderflow-producer: {error:#}");
    }
    drop(logs);
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
