//! Watches every process of `up`: one that dies is named with the end of its log and started again, with backoff. One that
//! a person has switched off is stopped in good order, and left alone until it is switched on.

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

const LOOK_EVERY: Duration = Duration::from_millis(250);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A process that lived this long died of something new.
const STEADY: Duration = Duration::from_mins(1);

/// Between tries to make again what LocalStack has forgotten.
const TRY_EVERY: Duration = Duration::from_secs(5);

const SHOWN_LINES: usize = 10;

/// Keeps everything running that is to run; ends only by being dropped.
pub(super) async fn supervise(running: &Running, home: &Home) {
    join_all(running.parts().iter().map(|part| keep(part, running, home))).await;
}

async fn keep(part: &Part, running: &Running, home: &Home) {
    let Some(control) = &part.control else { return keep_running(part, running, home, false).await };
    let mut was_off = false;
    loop {
        tokio::select! {
            () = keep_running(part, running, home, was_off) => {}
            // In the middle of whatever it was: what it had begun is ended by the stop.
            () = control.until(false) => {}
        }
        keep_stopped(part, running, home).await;
        was_off = true;
    }
}

/// Ends only by being dropped. `was_off`: it is to be started first, as a person has switched it on.
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
            mourn(service, pause);
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
            // It may have much to recover: it is waited for, and not killed for that.
            started = service.wait_until_up().await;
        }
        up_since = Instant::now();
        if started.is_err() {
            continue;
        }
        part.reached(Phase::Up);
        eprintln!("{} runs again (pid {})", service.name(), service.pid());
        note(service, running, home);
        if service.name() == running.localstack.name() {
            tokio::select! {
                () = bring_back_objects(running) => {}
                () = died(service) => {}
            }
        }
    }
}

/// Stops it, and returns when it is switched on.
async fn keep_stopped(part: &Part, running: &Running, home: &Home) {
    let (service, Some(control)) = (&*part.service, &part.control) else { return };
    part.reached(Phase::Between);
    eprintln!("\n{} is switched off", service.name());
    if let Err(error) = service.stop().await {
        eprintln!("{} did not stop in good order: {error:#}", service.name());
        service.kill();
    }
    part.reached(Phase::Down);
    note(service, running, home);
    control.until(true).await;
    part.reached(Phase::Between);
    note(service, running, home);
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
        sleep(LOOK_EVERY).await;
    }
}

/// LocalStack comes back without its bucket and its receipts. Both are asked of more than LocalStack, some of which may
/// have died, or be switched off, so this goes on until all of it is there.
async fn bring_back_objects(running: &Running) {
    insist("receipts cannot be stored", async || running.provision().await).await;
    insist("receipts are missing, and not queued again", async || running.queue_receipts_again().await).await;
    receipts::report(&running.postgres, &running.localstack).await;
}

/// Tries until it works; what is wrong is said once.
async fn insist(lacking: &str, attempt: impl AsyncFn() -> Result<()>) {
    let mut said = false;
    while let Err(error) = attempt().await {
        if !said {
            eprintln!("{lacking} until this works: {error:#}");
            said = true;
        }
        sleep(TRY_EVERY).await;
    }
}

/// Writes down what runs now, for `status`.
fn note(service: &dyn Service, running: &Running, home: &Home) {
    if let Err(error) = home.write_state(&running.state()) {
        eprintln!("note what became of {}: {error:#}", service.name());
    }
}

fn mourn(service: &dyn Service, pause: Duration) {
    let process = service.process();
    let status = process.exit_status().map_or_else(String::new, |status| format!(" ({status})"));
    eprintln!("\n{} has died{status}; starting it again in {pause:?}. The end of its log:", service.name());
    for line in process.log_tail(SHOWN_LINES).lines() {
        eprintln!("  | {line}");
    }
    eprintln!("  {}", process.log_path().display());
}
