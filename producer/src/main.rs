//! `orderflow-producer`: settings, telemetry, run until the signal; or `verify`.

use std::process::ExitCode;

use orderflow_producer::{Cli, Command, Settings, run, verify};
use orderflow_service::{install_tls, settings, shutdown, telemetry, traces};

fn main() -> ExitCode {
    install_tls();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let Cli { settings, command } = settings::parse();
    let logs = match &command {
        None => telemetry::start(&settings.telemetry),
        Some(_) => telemetry::start_on_stderr(&settings.telemetry),
    };
    let logs = match logs {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("orderflow-producer: {error:#}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start the async runtime");
    let (result, failure) = match command {
        None => {
            let served = runtime.block_on(serve(settings)).map(|()| true);
            (served.inspect_err(|error| tracing::error!(error = format!("{error:#}"), "stopped")), ExitCode::FAILURE)
        }
        // A signal ends it at once, which is safe at any time.
        Some(Command::Verify(options)) => {
            let mut stdout = std::io::stdout();
            (runtime.block_on(verify::run(&settings, &options, &mut stdout)), ExitCode::from(2))
        }
    };
    // A client library that hangs on a dead peer must not hold up the exit: everything important has been written.
    runtime.shutdown_background();
    if let Err(error) = &result {
        eprintln!("orderflow-producer: {error:#}");
    }
    drop(logs);
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) => failure,
    }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let _flush_spans = traces::start(settings.traces, "orderflow-producer")?;
    shutdown::until_signal(|stop| run(settings, stop)).await
}
