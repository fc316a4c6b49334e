//! Watches every process of `up`: one that dies is named with the end of its log and started again, with backoff.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::sleep;

use super::home::Home;
use super::receipts;
use super::running::Running;
use crate::{Service, eventually};

const LOOK_EVERY: Duration = Duration::from_millis(250);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A process that lived this long died of something new.
const STEADY: Duration = Duration::from_mins(1);

const BUCKET_DEADLINE: Duration = Duration::from_mins(2);

const SHOWN_LINES: usize = 10;

/// Keeps everything running; ends only by being dropped.
pub(super) async fn supervise(running: &Running, home: &Home) {
    join_all(running.services().into_iter().map(|service| keep_running(service, running, home))).await;
}

async fn keep_running(service: Arc<dyn Service>, running: &Running, home: &Home) {
    let mut pause = FIRST_PAUSE;
    let mut up_since = Instant::now();
    loop {
        sleep(LOOK_EVERY).await;
        if service.is_running() {
            continue;
        }
        if up_since.elapsed() > STEADY {
            pause = FIRST_PAUSE;
        }
        mourn(&*service, pause);
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match service.start_again().await {
            Ok(()) => eprintln!("{} runs again (pid {})", service.name(), service.pid()),
            Err(error) => eprintln!("{} does not start: {error:#}", service.name()),
        }
        up_since = Instant::now();
        if service.name() == running.localstack.name() {
            make_bucket_again(running).await;
            write_receipts_again(running).await;
        }
        if let Err(error) = running.state().and_then(|state| home.write_state(&state)) {
            eprintln!("note the restart of {}: {error:#}", service.name());
        }
    }
}

/// LocalStack comes back without its bucket. Provisioning asks for everything, so it waits for what has died as well.
async fn make_bucket_again(running: &Running) {
    if let Err(error) = eventually("the bucket to be made again", BUCKET_DEADLINE, || running.provision()).await {
        eprintln!("receipts cannot be stored: {error:#}");
    }
}

/// Ends when LocalStack does, so that it is watched again.
async fn write_receipts_again(running: &Running) {
    match running.queue_receipts_again().await {
        Ok(()) => receipts::tell(running).await,
        Err(error) => eprintln!("receipts are missing, and not queued again: {error:#}"),
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
