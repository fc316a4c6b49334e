//! The stats for the dashboard: true numbers while all is up, and the name of a part that is down.

use anyhow::{Result, ensure};
use orderflow_testbed::{
    Service, Stack,
    api::{Api, order_of, user},
    eventually, http,
    wait::PATIENCE,
};
use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    outages,
    support::{dependencies_up, serving, serving_alone},
};

async fn stats(api: &Api) -> Result<Value> {
    let reply = api.get("/api/stats").await?;
    ensure!(reply.status == StatusCode::OK, "{reply:?}");
    Ok(reply.json())
}

/// Waits until the stats satisfy `says`.
async fn stats_say(api: &Api, what: &str, says: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(what, PATIENCE, async || {
        let stats = stats(api).await?;
        ensure!(says(&stats), "{stats}");
        Ok(stats)
    })
    .await
}

fn sum(stats: &Value, list: &str, member: &str) -> Option<i64> {
    stats[list].as_array()?.iter().map(|entry| entry[member].as_i64()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stats_count_the_orders() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let quiet = stats_say(&api, "Kafka to be up", |stats| stats["kafka"]["up"] == true).await?;
    assert_eq!(quiet["consumer"], json!({"group": stack.group(), "members": 0, "lag": 0}));
    assert_eq!(quiet["shards"][0]["outbox_age_seconds"], Value::Null);

    api.place_many(40).await?;
    let unread = stats_say(&api, "a lag of 40", |stats| stats["consumer"]["lag"] == 40).await?;
    assert_eq!(sum(&unread, "partitions", "lag"), Some(40));

    let _consumer = stack.consumer().start().await?;
    let done = stats_say(&api, "everything to be done", |stats| {
        let shards_are_done = ["outbox", "receipt_jobs"].iter().all(|queue| sum(stats, "shards", queue) == Some(0));
        shards_are_done && stats["consumer"]["lag"] == 0 && stats["notifications"]["total"] == 40
    })
    .await?;
    assert_eq!(done["consumer"]["members"], 1);
    for shard in 0..2 {
        let of_shard = (0..40).filter(|number| ("abhm".contains(&user(*number)[..1])) == (shard == 0)).count();
        let expected = json!({
            "name": format!("shard{}", shard + 1), "users": if shard == 0 { "A-M" } else { "N-Z" }, "up": true,
            "reason": null, "orders": of_shard, "orders_estimated": false, "outbox": 0, "outbox_age_seconds": null,
            "receipt_jobs": 0, "receipt_jobs_age_seconds": null, "dead_events": 0,
        });
        assert_eq!(done["shards"][shard], expected);
    }
    for partition in done["partitions"].as_array().into_iter().flatten() {
        assert_eq!(partition["lag"], 0, "{done}");
    }
    assert_eq!(done["s3"], json!({"up": true, "reason": null}));
    assert_eq!(done["dead_letters"], json!({"waiting": 0, "total": 0}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_work_is_shown_with_its_age() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving_alone(&stack).await?;
    for _ in 0..3 {
        api.place("alice", None).await?.acked(0)?;
    }
    let waiting = stats_say(&api, "three to wait", |stats| stats["shards"][0]["outbox"] == 3).await?;
    assert_eq!(waiting["shards"][0]["receipt_jobs"], 3);
    for age in ["outbox_age_seconds", "receipt_jobs_age_seconds"] {
        assert!(waiting["shards"][0][age].as_f64().is_some_and(|age| age > 0.0), "{waiting}");
    }
    for dependency in ["s3", "kafka"] {
        assert_eq!(waiting[dependency]["up"], false, "{waiting}");
        assert!(waiting[dependency]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{waiting}");
    }
    assert_eq!(waiting["consumer"]["lag"], Value::Null);
    assert_eq!(waiting["dead_letters"], json!({"waiting": null, "total": null}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_down_is_named_and_hides_no_other() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let producer = outages::producer(&stack).start().await?;
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;
    dependencies_up(&producer, &["shard1", "shard2", "kafka", "s3"]).await?;
    api.place("alice", None).await?.acked(0)?;

    stack.postgres(2).stop().await?;
    stack.object_store().kill();
    let down = stats_say(&api, "shard2 and S3 to be down", |stats| {
        stats["shards"][1]["up"] == false && stats["s3"]["up"] == false
    })
    .await?;
    assert!(down["shards"][1]["reason"].is_string() && down["s3"]["reason"].is_string(), "{down}");
    for number in ["orders", "orders_estimated", "outbox", "receipt_jobs", "dead_events"] {
        assert_eq!(down["shards"][1][number], Value::Null, "{down}");
    }
    assert_eq!((&down["shards"][0]["up"], &down["shards"][0]["orders"]), (&json!(true), &json!(1)));
    assert_eq!(down["kafka"]["up"], true, "{down}");

    stack.kafka().pause();
    let frozen = stats_say(&api, "a frozen Kafka to be down", |stats| stats["kafka"]["up"] == false).await?;
    assert_eq!(frozen["shards"][0]["up"], true);
    assert_eq!(frozen["consumer"], json!({"group": stack.group(), "members": null, "lag": null}));

    stack.kafka().resume();
    stack.postgres(2).start_again().await?;
    stack.object_store().start_again().await?;
    stack.provision().await?;
    stats_say(&api, "everything to be up", |stats| {
        let dependencies = [&stats["kafka"], &stats["s3"], &stats["shards"][0], &stats["shards"][1]];
        dependencies.iter().all(|dependency| dependency["up"] == true)
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_share_one_answer() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let answers = futures_util::future::try_join_all((0..50).map(async |_| stats(&api).await)).await?;
    let mut times: Vec<_> = answers.iter().filter_map(|stats| stats["at"].as_str()).collect();
    times.dedup();
    // A response is a second old at most, so fifty requests do not cause fifty queries.
    assert!(times.len() < 10, "{times:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_gets_the_limits_and_may_request_only_the_controls() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let config = api.get("/api/config").await?.json();
    let limits = json!({
        "user_id": 100, "product_name": 255, "quantity": 2_147_483_647, "price_cents": 9_999_999_999_i64,
        "total_cents": 1_000_000_000_000_000_i64,
    });
    let expected = json!({
        "controls_url": null, "trace_url_template": null, "dead_letter_replay": false, "limits": limits,
    });
    assert_eq!(config, expected);
    let page = api.get("/").await?;
    let policy = page.header("content-security-policy").unwrap_or_default().to_owned();
    assert!(policy.contains("connect-src 'self';"), "{policy}");

    let controls = "http://127.0.0.1:8082";
    let producer = stack.producer().env("CONTROLS_URL", controls).env("DEAD_LETTER_REPLAY", "true").start().await?;
    let api = Api::new(&producer)?;
    let config = api.get("/api/config").await?.json();
    assert_eq!((&config["controls_url"], &config["dead_letter_replay"]), (&json!(controls), &json!(true)));
    let page = api.get("/").await?;
    let policy = page.header("content-security-policy").unwrap_or_default().to_owned();
    assert!(policy.contains("connect-src 'self' http://127.0.0.1:8082;"), "{policy}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_counted() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let _consumer = stack.consumer().start().await?;
    let (topic, client): (_, FutureProducer) = (stack.topic(), stack.kafka().client().create()?);
    for number in 0..3 {
        let record = FutureRecord::to(&topic).partition(number % 2).key("a").payload("no event");
        client.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
    }
    let counted = |stats: &Value| stats["dead_letters"] == json!({"waiting": 3, "total": 3});
    stats_say(&api, "three dead letters", counted).await?;
    api.post(order_of("alice"), None).await?.acked(0)?;
    stats_say(&api, "the group to be done", |stats| stats["consumer"]["lag"] == 0 && counted(stats)).await?;
    Ok(())
}

/// Alerts are based on these metrics.
#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_report_parts_that_are_down_and_work_that_waits() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving_alone(&stack).await?;
    api.place("alice", None).await?.acked(0)?;
    eventually("an event and a receipt of shard 1 to wait", PATIENCE, async || {
        let metrics = http::client().get(format!("{}/metrics", producer.admin_url()?)).send().await?.text().await?;
        let value = |of: &str| metrics.lines().find_map(|line| line.strip_prefix(of)?.trim().parse::<f64>().ok());
        for (dependency, up) in [("shard1", 1.0), ("shard2", 1.0), ("kafka", 0.0), ("s3", 0.0)] {
            let reported = value(&format!(r#"orderflow_dependency_up{{dependency="{dependency}"}}"#));
            ensure!(reported == Some(up), "{dependency}: {reported:?}");
        }
        for waiting in ["outbox", "receipt_jobs"] {
            let age = |shard| value(&format!(r#"orderflow_{waiting}_oldest_seconds{{shard="{shard}"}}"#));
            let ages = [age("shard1"), age("shard2")];
            ensure!(matches!(ages, [Some(waited), Some(0.0)] if waited > 0.0), "{waiting}: {ages:?}");
        }
        Ok(())
    })
    .await
}
