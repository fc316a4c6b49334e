//! The storm: faults drawn from a seed, in concurrent lanes, until their time is over.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    deployment::Deployment,
    fault::Fault,
    history::{Clock, Time},
};

/// The pause between two faults of a lane, in milliseconds.
const SHORTEST_CALM: u64 = 1000;
const LONGEST_CALM: u64 = 5000;

/// A fault that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Struck {
    pub kind: String,
    /// The part that it struck.
    pub part: String,
    pub from: Time,
    /// The time when the part had recovered: a killed process was up again, a frozen one resumed.
    pub to: Time,
}

/// The faults that happened, and the kinds that did not.
#[derive(Debug, Default)]
pub struct Record {
    pub struck: Vec<Struck>,
    /// Kinds of faults for which no time or no opportunity was left.
    pub missed: Vec<String>,
}

/// The length of a storm.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub until: Instant,
    /// The latest end: until then the storm goes on with the kinds of faults that have not happened yet.
    pub latest: Instant,
}

/// Strikes until the span is over. A fault that has begun is completed.
pub async fn run(
    deployment: &Arc<Deployment>,
    lanes: impl IntoIterator<Item = Vec<Fault>>,
    seed: u64,
    span: Span,
    clock: Clock,
) -> Result<Record> {
    let struck = Arc::new(Mutex::new(Vec::new()));
    let mut running = JoinSet::new();
    let mut kinds = Vec::new();
    for (number, lane) in (1..).zip(lanes) {
        kinds.extend(lane.iter().map(ToString::to_string));
        let (deployment, struck) = (deployment.clone(), struck.clone());
        let mut dealer = Rng::with_seed(seed.wrapping_add(number));
        running.spawn(async move {
            let (mut deck, mut owed) = (Vec::new(), lane.clone());
            while Instant::now() < span.until || (!owed.is_empty() && Instant::now() < span.latest) {
                if Instant::now() >= span.until {
                    deck.retain(|fault| owed.contains(fault));
                }
                if deck.is_empty() {
                    deck.clone_from(if Instant::now() < span.until { &lane } else { &owed });
                    dealer.shuffle(&mut deck);
                }
                let Some(fault) = deck.pop() else { return Ok(()) };
                // A generator of its own: what one fault draws depends on what it finds, and must not change the faults
                // after it.
                let mut rng = dealer.fork();
                let struck_now = fault.strike(&deployment, clock, &mut rng).await.with_context(|| fault.to_string())?;
                let to = clock.now();
                let second = |time: Time| (time - clock.beginning()) / 1_000_000;
                match struck_now {
                    Some((part, from)) => {
                        let (second, seconds) = (second(from), (to - from) as f64 / 1e6);
                        eprintln!("{second:6} s  {fault} [{part}], {seconds:.1} s");
                        let struck_now = Struck { kind: fault.to_string(), part, from, to };
                        struck.lock().unwrap_or_else(PoisonError::into_inner).push(struck_now);
                        owed.retain(|other| *other != fault);
                    }
                    None => eprintln!("{:6} s  {fault}: no opportunity", second(to)),
                }
                sleep(Duration::from_millis(rng.u64(SHORTEST_CALM..LONGEST_CALM))).await;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.context("a lane of faults")??;
    }
    let mut struck = std::mem::take(&mut *struck.lock().unwrap_or_else(PoisonError::into_inner));
    struck.sort_by_key(|struck| struck.from);
    kinds.retain(|kind| !struck.iter().any(|struck| struck.kind == *kind));
    Ok(Record { struck, missed: kinds })
}
