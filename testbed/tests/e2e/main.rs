//! All of OrderFlow on a real cluster, as a user installs it: both charts, the example, orders through a port-forward.
//! Then pods are deleted and versions change while orders flow, and every accepted order must arrive everywhere, once.
//!
//! `make e2e` runs it, on a node of the testbed's own or on a cluster of kind. It is one test: each step builds on the
//! steps before it, and a cluster of its own for each would take minutes.

mod cluster;
mod disturbances;
mod installation;
mod kubectl;
mod ledger;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use cluster::Cluster;
use installation::Installation;
use ledger::Ledger;
use traffic::Traffic;

/// The longest that a step on the cluster may take. A rollout of every pod takes longer than what other tests wait for.
const ROLLOUT: Duration = Duration::from_mins(5);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e"]
async fn an_installation_loses_no_order_through_all_disturbances() -> Result<()> {
    let clock = Clock(Instant::now());
    let cluster = Cluster::start().await?;
    clock.print("the cluster accepts pods");
    let outcome = run(&cluster, &clock).await;
    if outcome.is_err() {
        cluster.explain().await;
    }
    let removed = cluster.remove().await;
    outcome.and(removed)
}

async fn run(cluster: &Cluster, clock: &Clock) -> Result<()> {
    let installation = Installation::install(cluster, clock).await?;
    let ledger = Ledger::default();

    let began = Instant::now();
    traffic::through_a_port_forward(cluster, &ledger, 500).await.context("500 orders through a port-forward")?;
    clock.print(&format!("500 orders through kubectl port-forward in {:.1?}", began.elapsed()));
    ledger.settle(cluster).await.context("after 500 orders")?;
    clock.print("each has its row, receipt and notification, once");

    for disturbance in disturbances::ALL {
        if disturbance.needs_next_schema && cluster.is_kind() {
            clock.print(&format!(
                "SKIPPED, {}: images of a next version are built for a node of our own only",
                disturbance.name
            ));
            continue;
        }
        let traffic = Traffic::start(&installation.url, &ledger)?;
        traffic.takes(50).await.with_context(|| disturbance.name.to_owned())?;
        disturbance.happen(cluster, &installation).await.with_context(|| disturbance.name.to_owned())?;
        traffic.takes(50).await.with_context(|| format!("after: {}", disturbance.name))?;
        let tally = traffic.stop().await.with_context(|| disturbance.name.to_owned())?;
        clock.print(&format!("{}: {tally}", disturbance.name));
        ensure!(
            tally.failed.is_empty() || !disturbance.unnoticed,
            "{}: no request may fail, but {tally}: {:#?}",
            disturbance.name,
            tally.failed
        );
    }
    ledger.settle(cluster).await.context("after everything")?;
    clock.print(&format!("all {} orders have their row, receipt and notification, once each", ledger.len()));

    let lost = ledger::lose_one(cluster).await?;
    let error = ledger.settle(cluster).await.err().context("an order was deleted, and the check did not notice")?;
    ensure!(format!("{error:#}").contains(&lost), "{lost} was deleted, but: {error:#}");
    clock.print("the check notices a deleted order");

    installation.uninstall(cluster).await?;
    clock.print("uninstalled");
    Ok(())
}

/// Prints messages with the time since the start.
struct Clock(Instant);

impl Clock {
    fn print(&self, what: &str) {
        println!("e2e: {:4} s  {what}", self.0.elapsed().as_secs());
    }
}
