//! The consumer's process: reads the settings, starts the logs and runs the loop until a signal, or runs a `dlq`
//! command.

use std::{net::SocketAddr, process::ExitCode};

use orderflow_consumer::{Cli, Command, Settings, dlq};
use orderflow_service::{admin, install_tls, settings, shutdown, telemetry, traces};

fn main() -> ExitCode {
    install_tls();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();

    let Cli { settings, command } = settings::parse();
    let result = match command {
        None => consume(settings),
        Some(Command::Dlq(command)) => dlq::run(&settings, &command, &mut std::io::stdout().lock()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orderflow-consumer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(worker_threads = 1)]
async fn consume(settings: Settings) -> anyhow::Result<()> {
    let _flush_logs = telemetry::start(&settings.telemetry)?;
    let _flush_spans = traces::start(settings.traces, "orderflow-consumer")?;
    let address = SocketAddr::new(settings.admin.host, settings.admin.admin_port);
    let listener = admin::bind("admin", address).await?;
    shutdown::until_signal(|stop| orderflow_consumer::run(settings, listener, stop)).await
}
