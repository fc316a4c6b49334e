//! All of OrderFlow on a real cluster, as somebody installs it: both charts, the example, orders through a port-forward;
//! then pods are deleted and versions change while orders flow, and every order that was taken is where it belongs.
//!
//! `make e2e` runs it, on a node of the testbed's own or on a cluster of kind. It is one test: each step is about what
//! the steps before it made, and a cluster of its own for each would take minutes.

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

/// The longest that a step on the cluster may take: a rollout of every pod takes longer than what other tests wait for.
const ROLLOUT: Duration = Duration::from_mins(5);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: make e2e"]
async fn an_installation_loses_no_order_whatever_happens_to_its_pods() -> Result<()> {
    let clock = Clock(Instant::now());
    let cluster = Cluster::start().await?;
    clock.says("the cluster takes pods");
    let outcome = story(&cluster, &clock).await;
    if outcome.is_err() {
        cluster.explain().await;
    }
    let removed = cluster.remove().await;
    outcome.and(removed)
}

async fn story(cluster: &Cluster, clock: &Clock) -> Result<()> {
    let installation = Installation::install(cluster, clock).await?;
    let ledger = Ledger::default();

    let began = Instant::now();
    traffic::through_a_port_forward(cluster, &ledger, 500).await.context("500 orders through a port-forward")?;
    clock.says(&format!("500 orders through kubectl port-forward in {:.1?}", began.elapsed()));
    ledger.settle(cluster).await.context("after 500 orders")?;
    clock.says("their rows, receipts and notifications are there, once each");

    for disturbance in disturbances::ALL {
        if disturbance.needs_next_schema && cluster.is_kind() {
            clock.says(&format!(
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
        clock.says(&format!("{}: {tally}", disturbance.name));
        ensure!(
            tally.failed.is_empty() || !disturbance.unnoticed,
            "{}: nobody should notice, but {tally}: {:#?}",
            disturbance.name,
            tally.failed
        );
    }
    ledger.settle(cluster).await.context("after everything")?;
    clock.says(&format!("all {} orders have their row, receipt and notification, once each", ledger.len()));

    let lost = ledger::lose_one(cluster).await?;
    let noticed =
        ledger.settle(cluster).await.err().context("an order was taken away, and the check did not notice")?;
    ensure!(format!("{noticed:#}").contains(&lost), "{lost} was taken away, but: {noticed:#}");
    clock.says("the check notices an order that was taken away");

    installation.uninstall(cluster).await?;
    clock.says("uninstalled");
    Ok(())
}

/// Says how long everything took so far.
struct Clock(Instant);

impl Clock {
    fn says(&self, what: &str) {
        println!("e2e: {:4} s  {what}", self.0.elapsed().as_secs());
    }
}
