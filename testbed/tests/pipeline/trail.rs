//! An order's trail: each station reports what is known about it, and what is not.

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use orderflow_testbed::{
    Service, Stack,
    api::{Acked, Api},
    eventually,
    wait::PATIENCE,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{serving, serving_alone};

async fn trail(api: &Api, id: &str) -> Result<Value> {
    let reply = api.get(&format!("/api/orders/{id}/trail")).await?;
    ensure!(reply.status == StatusCode::OK, "{reply:?}");
    Ok(reply.json())
}

/// Waits until the trail satisfies `says`.
async fn trail_says(api: &Api, id: &str, what: &str, says: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(what, PATIENCE, async || {
        let trail = trail(api, id).await?;
        ensure!(says(&trail), "{trail}");
        Ok(trail)
    })
    .await
}

async fn place(api: &Api) -> Result<Acked> {
    api.place("alice", None).await?.acked(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_followed_from_its_acceptance_to_its_notification() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let order = place(&api).await?;
    let published = trail_says(&api, &order.id, "the order to be published and its receipt stored", |trail| {
        trail["published"]["state"] == "published" && trail["receipt"]["state"] == "stored"
    })
    .await?;
    assert_eq!(published["notified"], json!({"state": "waiting", "at": null}));
    assert!(published["published"]["offset"].is_i64() && published["published"]["at"].is_string(), "{published}");

    let _consumer = stack.consumer().start().await?;
    let notified = |trail: &Value| trail["notified"]["state"] == "notified";
    let fresh = trail_says(&api, &order.id, "the order to be notified", notified).await?;
    let at = fresh["order"]["created_at"].clone();
    assert_eq!(fresh["order"]["id"], order.id);
    assert_eq!((&fresh["shard"], &fresh["stored"]), (&json!("shard1"), &json!({"shard": "shard1"})));
    assert_eq!(fresh["accepted"], json!({"at": at}));
    assert!(fresh["receipt"]["at"].is_string() && fresh["notified"]["at"].is_string(), "{fresh}");

    // A new process shows the order in its history, and later only on the topic.
    producer.stop().await?;
    let (_producer, api) = serving(&stack).await?;
    api.place_many(100).await?;
    eventually("a hundred others to be notified", PATIENCE, async || {
        let stats = api.get("/api/stats").await?.json();
        ensure!(stats["notifications"]["total"] == 100, "{stats}");
        Ok(())
    })
    .await?;
    assert_eq!(trail(&api, &order.id).await?, fresh);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_shows_an_order_that_waits_for_kafka_and_s3() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving_alone(&stack).await?;
    let order = place(&api).await?;
    let waiting = trail_says(&api, &order.id, "a try to write the receipt", |trail| {
        trail["receipt"]["attempts"].as_i64().is_some_and(|attempts| attempts > 0)
    })
    .await?;
    assert_eq!(waiting["receipt"]["state"], "pending");
    assert_eq!(waiting["published"], json!({"state": "waiting", "at": null, "partition": null, "offset": null}));
    assert_eq!(waiting["notified"], json!({"state": "waiting", "at": null}));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_not_found_is_unknown_with_the_range_that_was_searched() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let order = place(&api).await?;
    trail_says(&api, &order.id, "the event to be published", |trail| trail["published"]["state"] == "published")
        .await?;
    // The order looks as if its event was lost.
    sqlx::query("UPDATE orders SET id = '00000000-0000-7000-8000-000000000001'")
        .execute(&mut stack.shard(1).await?)
        .await?;
    let lost = trail(&api, "00000000-0000-7000-8000-000000000001").await?;
    assert_eq!((&lost["published"]["state"], &lost["notified"]["state"]), (&json!("unknown"), &json!("unknown")));
    assert!(lost["note"].as_str().is_some_and(|note| note.contains("since")), "{lost}");

    sqlx::query(
        "INSERT INTO outbox_dead (event_id, order_id, user_id, payload, created_at, reason) \
         VALUES ('00000000-0000-7000-8000-000000000001', '00000000-0000-7000-8000-000000000001', 'alice', '', now(), 'x')",
    )
    .execute(&mut stack.shard(1).await?)
    .await?;
    let dead = trail(&api, "00000000-0000-7000-8000-000000000001").await?;
    assert_eq!(dead["published"]["state"], "dead", "{dead}");
    assert!(dead["published"]["at"].is_string(), "{dead}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_order_has_no_trail_and_concurrent_searches_are_limited() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    api.get("/api/orders/nonsense/trail").await?.expect_problem(400, "invalid-parameter")?;
    let missing = "/api/orders/00000000-0000-7000-8000-000000000000/trail";
    api.get(missing).await?.expect_problem(404, "not-found")?;

    let order = place(&api).await?;
    trail_says(&api, &order.id, "the event to be published", |trail| trail["published"]["state"] == "published")
        .await?;
    let path = format!("/api/orders/{}/trail", order.id);
    let mut answered = 0;
    for answer in join_all((0..32).map(async |_| api.get(&path).await)).await {
        let answer = answer?;
        if answer.status == StatusCode::OK {
            answered += 1;
        } else {
            answer.expect_problem(503, "too-many-look-ups")?;
            ensure!(answer.header("retry-after").is_some(), "{answer:?}");
        }
    }
    assert!(answered > 0, "all were refused");
    Ok(())
}
