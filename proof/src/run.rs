//! One run: start, place orders during a storm, wait until all is calm, read the state, check it, report.

use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use orderflow_testbed::folder;
use tokio::time::{Instant, sleep};

use crate::{
    checker::{self, Kind},
    client::Clients,
    deployment::Deployment,
    explain,
    fault::{self, Fault, Length},
    history::{Clock, Recorder},
    report::Report,
    settings::Settings,
    storm,
};

/// The longest standstill after the storm while work is left: longer than every lease and pause of the product.
const STANDSTILL: Duration = Duration::from_secs(60);

/// The time of orders before the first fault and after the last one.
const LULL: Duration = Duration::from_secs(4);

/// The shortest storm that has time for faults which outlast every timeout.
const SHORT: Duration = Duration::from_secs(120);

/// Runs the proof once. Fails only if the run could not be carried out.
pub async fn run(settings: Settings) -> Result<Report> {
    let seed = settings.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let folder = settings.folder.clone().unwrap_or_else(|| default_folder(seed));
    folder::create(&folder)?;
    let storm = Duration::from_secs_f64(settings.minutes * 60.0);
    eprintln!("SEED={seed} MINUTES={} RATE={}, in {}", settings.minutes, settings.rate, folder.display());

    let deployment = Arc::new(Deployment::start(&folder, settings.store).await.context("start OrderFlow")?);
    if deployment.disk.is_none() {
        eprintln!("        no disk will be filled: only root can mount one");
    }
    let clock = Clock::start();
    let recorder = Arc::new(Recorder::create(&folder.join("history.jsonl"))?);
    let clients = Arc::new(Clients { seed, producers: deployment.producers(), recorder: recorder.clone(), clock });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let load = tokio::spawn({
        let clients = clients.clone();
        async move { clients.run(0, u64::MAX, settings.rate, stopped).await }
    });

    sleep(LULL).await;
    let lanes = fault::lanes(settings.store, deployment.disk.is_some()).map(|lane| {
        lane.into_iter().filter(|fault| storm >= SHORT || !matches!(fault, Fault::Freeze(_, Length::Long))).collect()
    });
    let until = Instant::now() + storm;
    let latest = if storm >= SHORT { until + storm } else { until };
    let record = storm::run(&deployment, lanes, seed, storm::Span { until, latest }, clock).await?;
    eprintln!("{:6} s  calm; {} orders so far", seconds(&clock), recorder.acked());
    sleep(LULL).await;
    drop(stop);
    load.await.context("place orders")??;
    drop(clients);
    let history = Arc::into_inner(recorder).context("a client still writes")?.finish()?;
    write_faults(&folder, &record)?;

    let exited = restart_exited(&deployment).await?;
    let sites = deployment.sites();
    let settled = sites.settled(STANDSTILL).await;
    let seen = sites.observe().await.context("read the final state")?;
    let mut verdict = checker::check(&history, &seen);
    for what in exited {
        verdict.find(Kind::Unexpected, None, None, what);
    }
    if let Err(error) = settled {
        verdict.find(Kind::Lost, None, None, format!("{error:#}"));
    }
    let report = Report::new(seed, &settings, &record, verdict, (clock.now() - clock.beginning()) / 1_000_000);
    let mut text = report.to_string();
    if let Some(finding) = report.verdict.findings.first() {
        text += &explain::explain(finding, &history, &seen, &record, clock.beginning(), &sites).await;
    }
    println!("{text}");
    std::fs::write(folder.join("report.txt"), &text).context("write the report")?;
    std::fs::write(folder.join("report.json"), report.to_json().to_string()).context("write the report")?;
    drop(deployment);
    if report.passed() {
        let _ = std::fs::remove_dir_all(folder.join("data"));
    } else {
        println!(
            "Logs, history and data are in {}\nTo repeat: make proof SEED={seed} MINUTES={} RATE={}",
            folder.display(),
            settings.minutes,
            settings.rate
        );
    }
    Ok(report)
}

/// Restarts the processes that have exited, so that the rest can be judged, and returns a finding for each: none should
/// exit without a fault.
async fn restart_exited(deployment: &Deployment) -> Result<Vec<String>> {
    let mut exited = Vec::new();
    for (part, service) in deployment.processes() {
        if let Some(status) = service.process().exit_status() {
            exited.push(format!(
                "{part} exited without a fault ({status}); log: {}",
                service.process().log_path().display()
            ));
            service.start_again().await?;
        }
    }
    Ok(exited)
}

fn write_faults(folder: &Path, record: &storm::Record) -> Result<()> {
    let mut out = std::fs::File::create(folder.join("faults.jsonl")).context("create faults.jsonl")?;
    for struck in &record.struck {
        writeln!(out, "{}", serde_json::to_string(struck)?).context("write faults.jsonl")?;
    }
    Ok(())
}

fn default_folder(seed: u64) -> PathBuf {
    std::env::temp_dir().join(format!("orderflow-proof-{seed}-{}", std::process::id()))
}

fn seconds(clock: &Clock) -> i64 {
    (clock.now() - clock.beginning()) / 1_000_000
}
