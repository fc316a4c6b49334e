//! Watches every process of `up`. A process that dies is reported with the end of its log and started again, with
//! backoff. A part that a person has switched off is stopped gracefully and stays off until it is switched on.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::join_all;
use orderflow_testbed::Service;
use tokio::time::sleep;

use crate::{
    control::Phase,
    home::Home,
    receipts,
    running::{Part, Running},
};

const CHECK_EVERY: Duration = Duration::from_millis(250);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The uptime after which a death counts as a new failure, and the backoff starts again.
const STEADY: Duration = Duration::from_mins(1);

/// The pause between attempts to restore what LocalStack has forgotten.
const TRY_EVERY: Duration = Duration::from_secs(5);

const SHOWN_LINES: usize = 10;

/// Keeps all parts running that a person wants; ends only by being dropped.
pub(super) async fn supervise(running: &Running, home: &Home) {
    join_all(running.parts().iter().map(|part| keep(part, running, home))).await;
}

async fn keep(part: &Part, running: &Running, home: &Home) {
    let Some(control) = &part.control else { return keep_running(part, running, home, false).await };
    let mut was_off = false;
    loop {
        tokio::select! {
            () = keep_running(part, running, home, was_off) => {}
            // Whatever was under way is dropped; the stop ends what it had started.
            () = control.until(false) => {}
        }
        keep_stopped(part, running, home).await;
        was_off = true;
    }
}

/// Keeps a part running; ends only by being dropped. With `was_off` it starts the part first, because a person has
/// switched it on.
async fn keep_running(part: &Part, running: &Running, home: &Home, was_off: bool) {
    let service = &*part.service;
    let (mut pause, mut up_since, mut switched_on) = (FIRST_PAUSE, Instant::now(), was_off);
    loop {
        if !switched_on {
            died(service).await;
            part.reached(Phase::Between);
            if up_since.elapsed() > STEADY {
                pause = FIRST_PAUSE;
            }
            report_death(service, pause);
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        switched_on = false;
        let mut started = service.start_again().await;
        while let Err(error) = &started {
            eprintln!("{} does not start: {error:#}", service.name());
            if !service.is_running() {
                break;
            }
            // The service may have much to recover, so it is waited for and not killed.
            started = service.wait_until_up().await;
        }
        up_since = Instant::now();
        if started.is_err() {
            continue;
        }
        part.reached(Phase::Up);
        eprintln!("{} runs again (pid {})", service.name(), service.pid());
        record(service, running, home);
        if service.name() == running.localstack.name() {
            tokio::select! {
                () = bring_back_objects(running) => {}
                () = died(service) => {}
            }
        }
    }
}

/// Stops a part, and returns when it is switched on.
async fn keep_stopped(part: &Part, running: &Running, home: &Home) {
    let (service, Some(control)) = (&*part.service, &part.control) else { return };
    part.reached(Phase::Between);
    eprintln!("\n{} is switched off", service.name());
    if let Err(error) = service.stop().await {
        eprintln!("{} did not stop gracefully: {error:#}", service.name());
        service.kill();
    }
    part.reached(Phase::Down);
    record(service, running, home);
    control.until(true).await;
    part.reached(Phase::Between);
    record(service, running, home);
    eprintln!("\n{} is switched on", service.name());
}

impl Part {
    fn reached(&self, phase: Phase) {
        if let Some(control) = &self.control {
            control.reached(phase);
        }
    }
}

async fn died(service: &dyn Service) {
    while service.is_running() {
        sleep(CHECK_EVERY).await;
    }
}

/// Restores the bucket and the receipts, which LocalStack loses. Both need other services too, some of which may have
/// died or be switched off, so this repeats until all is restored.
async fn bring_back_objects(running: &Running) {
    retry("receipts cannot be stored", async || running.provision().await).await;
    retry("receipts are missing and not queued again", async || running.queue_receipts_again().await).await;
    receipts::report(&running.postgres, &running.localstack).await;
}

/// Repeats `attempt` until it succeeds; reports the first error only.
async fn retry(lacking: &str, attempt: impl AsyncFn() -> Result<()>) {
    let mut reported = false;
    while let Err(error) = attempt().await {
        if !reported {
            eprintln!("{lacking} until this works: {error:#}");
            reported = true;
        }
        sleep(TRY_EVERY).await;
    }
}

/// Records what runs now, for `status`.
fn record(service: &dyn Service, running: &Running, home: &Home) {
    if let Err(error) = home.write_state(&running.state()) {
        eprintln!("cannot record the state of {}: {error:#}", service.name());
    }
}

fn report_death(service: &dyn Service, pause: Duration) {
    let process = service.process();
    let status = process.exit_status().map_or_else(String::new, |status| format!(" ({status})"));
    eprintln!("\n{} died{status}; starting it again in {pause:?}. The end of its log:", service.name());
    for line in process.log_tail(SHOWN_LINES).lines() {
        eprintln!("  | {line}");
    }
    eprintln!("  {}", process.log_path().display());
}
