//! `orderflow-operator`: reads the settings, then runs the controller until a signal, or one of the small commands.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use orderflow_operator::{Command, Settings, check, crd, release};
use orderflow_service::{install_tls, settings, shutdown, telemetry};

fn main() -> ExitCode {
    install_tls();
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let settings: Settings = settings::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("start the async runtime");
    let result = match settings.command {
        Command::Crd => {
            print!("{}", crd::definition_yaml());
            Ok(true)
        }
        Command::Check(settings) => runtime.block_on(check::run(&settings)),
        Command::Release(settings) => runtime.block_on(release::run(&settings)).map(|()| true),
        Command::Run(settings) => runtime.block_on(async {
            let _flush_logs = telemetry::start(&settings.telemetry())?;
            shutdown::until_signal(|stop| orderflow_operator::run(*settings, stop)).await.map(|()| true)
        }),
    };
    // A client library stuck on a dead peer must not keep the process alive: everything that matters is written.
    runtime.shutdown_background();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("orderflow-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}
