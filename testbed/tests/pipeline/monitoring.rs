//! The chart orderflow-monitoring, on a real Prometheus that scrapes a running pipeline: every panel shows something, and
//! every alert about a fault fires when that fault is caused.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Consumer, Producer, Prometheus, Service, Stack,
    api::Api,
    dashboards, eventually, folder, http,
    prometheus::{Scrape, Target},
    wait::PATIENCE,
};
use rdkafka::message::OwnedHeaders;
use reqwest::StatusCode;
use serde_json::Value;

use crate::dead_letters::send;

/// Key of the relay's advisory lock; see `producer/src/relay/session.rs`.
const RELAY_LOCK: i64 = 0x6f72_6465_7266_6c77;

async fn watched(name: &str, producer: &Producer, consumer: &Consumer) -> Result<Prometheus> {
    let target = |url: String| {
        let address = url.trim_start_matches("http://").to_owned();
        Target::new("orderflow", address).label("namespace", "shop").label("pipeline", "main").label("pod", "one")
    };
    let scrape = Scrape {
        targets: vec![target(producer.admin_url()?), target(consumer.admin_url()?)],
        rules: vec![dashboards::impatient_rules(name)?],
        ..Scrape::default()
    };
    Prometheus::start(folder::for_test_process()?, name, &scrape).await
}

/// Waits until the alert fires.
async fn fires(prometheus: &Prometheus, alert: &str) -> Result<()> {
    eventually(&format!("{alert} to fire"), PATIENCE, async || {
        let alerts = prometheus.alerts().await?;
        ensure!(alerts.iter().any(|active| active.name == alert && active.state == "firing"), "{alerts:?}");
        Ok(())
    })
    .await
}

/// Waits until none of these alerts is active.
async fn is_silent(prometheus: &Prometheus, about: &[&str]) -> Result<()> {
    eventually(&format!("{about:?} to be silent"), PATIENCE, async || {
        let alerts = prometheus.alerts().await?;
        ensure!(!alerts.iter().any(|active| about.contains(&active.name.as_str())), "{alerts:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_of_a_pipeline_shows_data() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, consumer) = (stack.producer().start().await?, stack.consumer().start().await?);
    let api = Api::new(&producer)?;
    let prometheus = watched("panels", &producer, &consumer).await?;
    let queries = dashboards::queries(&["overview", "producer", "receipts", "relay-and-consumer"])?;
    ensure!(queries.len() > 30, "{} expressions", queries.len());
    eventually("every expression to return data", PATIENCE, async || {
        api.place_many(20).await?;
        let mut empty = Vec::new();
        for query in &queries {
            let samples = prometheus.query(&query.expression).await.with_context(|| format!("{query:?}"))?;
            if samples.is_empty() {
                empty.push(format!("{}, {}: {}", query.dashboard, query.panel, query.expression));
            }
        }
        ensure!(empty.is_empty(), "no data:\n{}", empty.join("\n"));
        Ok(())
    })
    .await?;
    rules_are_evaluated(&prometheus).await
}

/// Checks that Prometheus evaluates every rule without an error, and that what is recorded while all is well is there.
async fn rules_are_evaluated(prometheus: &Prometheus) -> Result<()> {
    let answer = http::client().get(format!("{}/api/v1/rules", prometheus.address())).send().await?;
    let answer: Value = answer.json().await?;
    let groups = answer["data"]["groups"].as_array().context("no groups")?;
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
    ensure!(rules.len() > 30, "{} rules", rules.len());
    for rule in rules {
        ensure!(rule["health"] == "ok", "{rule}");
        let name = rule["name"].as_str().context("no name")?;
        // These count faults.
        if rule["type"] == "recording" && !name.ends_with("_down:count") {
            ensure!(!prometheus.query(name).await?.is_empty(), "{name} has no data");
        }
    }
    Ok(())
}

/// The offsets of a group that has handled everything still differ from the ends of the logs, by transaction markers.
#[tokio::test(flavor = "multi_thread")]
async fn the_lag_counts_events_and_is_zero_when_all_are_notified() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().start().await?;
    let api = Api::new(&producer)?;
    api.place_many(7).await?;
    let lag = async |kind: &str| -> Result<f64> {
        let metrics = http::client().get(format!("{}/metrics", producer.admin_url()?)).send().await?.text().await?;
        let name = format!("orderflow_consumer_lag_{kind}{{");
        let values = metrics.lines().filter(|line| line.starts_with(&name)).filter_map(|line| line.split(' ').nth(1));
        let values: Vec<f64> = values.map(str::parse).collect::<Result<_, _>>()?;
        ensure!(!values.is_empty(), "no lag in\n{metrics}");
        Ok(values.iter().sum())
    };
    eventually("a lag of seven events", PATIENCE, async || {
        let (events, seconds) = (lag("events").await?, lag("seconds").await?);
        ensure!(events as i64 == 7 && seconds > 0.0, "{events} events, {seconds} s");
        Ok(())
    })
    .await?;
    let _consumer = stack.consumer().start().await?;
    eventually("no lag", PATIENCE, async || {
        let (events, seconds) = (lag("events").await?, lag("seconds").await?);
        ensure!(events <= 0.0 && seconds <= 0.0, "{events} events, {seconds} s");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_makes_its_alert_fire() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let (producer, consumer) = (stack.producer().start().await?, stack.consumer().start().await?);
    let api = Api::new(&producer)?;
    producer.ready(PATIENCE).await?;
    consumer.ready(PATIENCE).await?;
    api.place_many(20).await?;
    let prometheus = watched("faults", &producer, &consumer).await?;
    let causes = [
        "OrderFlowShardDown",
        "OrderFlowKafkaDown",
        "OrderFlowS3Down",
        "OrderFlowConsumersOff",
        "OrderFlowRelayNotLeading",
        "OrderFlowDeadLetter",
        "OrderFlowOrderErrorBudgetBurn",
    ];
    eventually("both processes to be scraped", PATIENCE, async || {
        let up = prometheus.query("sum(up{job=\"orderflow\"}) == 2").await?;
        ensure!(!up.is_empty(), "not yet");
        Ok(())
    })
    .await?;
    is_silent(&prometheus, &causes).await?;

    stack.object_store().pause();
    api.place_many(1).await?;
    fires(&prometheus, "OrderFlowS3Down").await?;
    stack.object_store().resume();
    is_silent(&prometheus, &["OrderFlowS3Down"]).await?;

    send(&stack, &stack.topic(), b"poison", OwnedHeaders::new()).await?;
    fires(&prometheus, "OrderFlowDeadLetter").await?;

    // Another session holds the lock of a relay, as one that hangs would.
    let mut holder = stack.shard(1).await?;
    sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()",
    )
    .execute(&mut holder)
    .await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(RELAY_LOCK).execute(&mut holder).await?;
    fires(&prometheus, "OrderFlowRelayNotLeading").await?;
    drop(holder);
    is_silent(&prometheus, &["OrderFlowRelayNotLeading"]).await?;

    consumer.stop().await?;
    api.place_many(20).await?;
    // As long as the last scrape is not stale, the consumer seems to have its partitions.
    fires(&prometheus, "OrderFlowConsumersOff").await?;
    consumer.start_again().await?;

    stack.kafka().pause();
    fires(&prometheus, "OrderFlowKafkaDown").await?;
    stack.kafka().resume();
    is_silent(&prometheus, &["OrderFlowKafkaDown"]).await?;

    stack.postgres(1).kill();
    fires(&prometheus, "OrderFlowShardDown").await?;
    for _ in 0..20 {
        let reply = api.place("alice", None).await?;
        ensure!(reply.status == StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
    }
    fires(&prometheus, "OrderFlowOrderErrorBudgetBurn").await
}

#[test]
fn the_dashboards_are_well_formed() -> Result<()> {
    for (name, dashboard) in dashboards::all()? {
        ensure!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 39), "{name}: schemaVersion");
        ensure!(dashboard["uid"].as_str().is_some_and(|uid| uid.contains("orderflow")), "{name}: uid");
        let (mut ids, mut places) = (Vec::new(), Vec::new());
        for panel in dashboards::panels(&dashboard) {
            let title = panel["title"].as_str().unwrap_or_default();
            ensure!(!title.is_empty(), "{name}: a panel without a title: {panel}");
            ids.push(panel["id"].as_u64().with_context(|| format!("{name}, {title}: no id"))?);
            places.push((panel["gridPos"]["x"].as_u64(), panel["gridPos"]["y"].as_u64()));
            if panel["type"] == "row" || panel["type"] == "text" {
                continue;
            }
            ensure!(panel["datasource"]["uid"] == "${datasource}", "{name}, {title}: {}", panel["datasource"]);
            ensure!(
                panel["description"].as_str().is_some_and(|text| !text.is_empty()),
                "{name}, {title}: no description"
            );
            ensure!(
                panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()),
                "{name}, {title}: no query"
            );
        }
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        ensure!(ids.len() == count, "{name}: two panels have one id");
        places.sort_unstable();
        places.dedup();
        ensure!(places.len() == count, "{name}: two panels are at one place");
    }
    Ok(())
}

#[test]
fn the_rules_pass_their_own_tests() -> Result<()> {
    let chart = dashboards::files().join("..").canonicalize()?;
    let output = std::process::Command::new(orderflow_testbed::tools::promtool()?)
        .args(["test", "rules", "tests/rules_test.yaml"])
        .current_dir(&chart)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{text}");
    Ok(())
}
