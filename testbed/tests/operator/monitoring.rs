//! The operator's dashboard, on a real Prometheus that scrapes a running operator.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Prometheus, dashboards, eventually, folder,
    prometheus::{Scrape, Target},
    wait::PATIENCE,
};

use crate::support::World;

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_of_the_operator_shows_data() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    world.create(world.orderflow()).await?;
    world.wait_for("Ready", "True", "Available").await?;
    let address = operator.admin_url()?.trim_start_matches("http://").to_owned();
    let target = Target::new("orderflow", address).label("operator", "orderflow").label("pod", "one");
    let rules = vec![dashboards::impatient_rules("operator-panels")?];
    let scrape = Scrape { targets: vec![target], rules, ..Scrape::default() };
    let prometheus = Prometheus::start(folder::for_test_process()?, "operator-panels", &scrape).await?;
    let queries = dashboards::queries(&["operator"])?;
    ensure!(queries.len() > 5, "{} expressions", queries.len());
    eventually("every expression to return data", PATIENCE, async || {
        let mut empty = Vec::new();
        for query in &queries {
            let samples = prometheus.query(&query.expression).await.with_context(|| format!("{query:?}"))?;
            if samples.is_empty() {
                empty.push(format!("{}: {}", query.panel, query.expression));
            }
        }
        ensure!(empty.is_empty(), "no data:\n{}", empty.join("\n"));
        Ok(())
    })
    .await
}
