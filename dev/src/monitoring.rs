//! The Prometheus of `MONITORING=1`: it scrapes the producer and the consumer, and evaluates the rules that the chart
//! orderflow-monitoring ships.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use orderflow_testbed::{
    Prometheus,
    prometheus::{Scrape, Target},
};

/// Time between two scrapes: short, so that a person who has just stopped a part sees it.
const INTERVAL: Duration = Duration::from_secs(5);

const RULES: &str = include_str!("../../charts/orderflow-monitoring/files/rules.yaml");

/// Starts it below `folder`, with the two programs, each a name and its admin port, as its targets.
pub(super) async fn start(folder: &Path, port: u16, programs: [(&str, &str); 2]) -> Result<Prometheus> {
    let rules = folder.join("data").join("rules.yaml");
    // The runbook of this checkout.
    let text = RULES.replace("https://orderflow.dev/runbook.html", "docs/runbook.md");
    std::fs::write(&rules, text).with_context(|| format!("write {}", rules.display()))?;
    let target = |(name, url): (&str, &str)| {
        let address = url.trim_start_matches("http://").to_owned();
        // The labels that the rules need.
        Target::new("orderflow", address).label("namespace", "laptop").label("pipeline", "laptop").label("pod", name)
    };
    let scrape = Scrape { interval: INTERVAL, targets: programs.map(target).into(), rules: vec![rules] };
    Prometheus::start_on(folder, "prometheus", port, &scrape).await
}
