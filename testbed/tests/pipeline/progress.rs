//! Checks the progress that a list reports for each order. It comes from the shards' queues and the consumer group's
//! offsets, whatever a producer saw of it before.

use anyhow::{Result, ensure};
use orderflow_testbed::{Stack, api::Api, eventually, wait::PATIENCE};
use serde_json::Value;

use crate::support::{serving, serving_alone};

/// Waits until the list reports these states for all orders: published, notified.
async fn all_are(api: &Api, expected: [&str; 2]) -> Result<()> {
    eventually(&format!("all orders to be {expected:?}"), PATIENCE, async || {
        let list = api.get("/api/orders?progress=true").await?.json();
        let orders = list["orders"].as_array().cloned().unwrap_or_default();
        ensure!(!orders.is_empty(), "no orders: {list}");
        let states = orders.iter().map(|order| [&order["published"], &order["notified"]]);
        let others: Vec<_> = states.filter(|states| *states != expected).collect();
        ensure!(others.is_empty(), "{} of {}: {:?}", others.len(), orders.len(), others.first());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_order_of_a_list_reports_publication_and_notification() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let acked = api.place_many(30).await?;
    all_are(&api, ["published", "waiting"]).await?;

    let consumer = stack.consumer().start().await?;
    all_are(&api, ["published", "notified"]).await?;
    // A producer that was started later reports the same.
    let (_other, other) = serving(&stack).await?;
    all_are(&other, ["published", "notified"]).await?;
    let order = other.get(&format!("/api/orders/{}?progress=true", acked[0].id)).await?.json();
    assert_eq!((&order["published"], &order["notified"]), (&Value::from("published"), &Value::from("notified")));
    drop(consumer);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_event_waits_or_was_refused_is_not_published() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving_alone(&stack).await?;
    let waits = api.place("alice", None).await?.acked(0)?;
    all_are(&api, ["waiting", "waiting"]).await?;

    const REFUSE: &str = "WITH moved AS (DELETE FROM outbox WHERE event_id = $1::uuid RETURNING *) \
        INSERT INTO outbox_dead (event_id, order_id, user_id, payload, traceparent, created_at, reason) \
        SELECT event_id, order_id, user_id, payload, traceparent, created_at, 'too large' FROM moved";
    sqlx::query(REFUSE).bind(&waits.id).execute(&mut stack.shard(1).await?).await?;
    all_are(&api, ["refused", "waiting"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_the_notification_of_a_published_order_is_unknown() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    api.place("alice", None).await?.acked(0)?;
    all_are(&api, ["published", "waiting"]).await?;
    let (_alone, alone) = serving_alone(&stack).await?;
    all_are(&alone, ["published", "unknown"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_reported_only_on_request() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let order = api.place("alice", None).await?.acked(0)?;
    let one = api.order(&order.id).await?;
    let listed = api.get("/api/orders?progress=false").await?.json()["orders"][0].clone();
    for order in [one, listed] {
        assert!(order.get("published").is_none() && order.get("notified").is_none(), "{order}");
    }
    Ok(())
}
