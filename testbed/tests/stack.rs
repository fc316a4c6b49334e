//! A stack runs the real product, and no two stacks see each other.

use anyhow::Result;
use orderflow_testbed::{Isolation, Service, Stack, api::Api, eventually, http, wait::PATIENCE};
use serde_json::Value;

#[tokio::test]
async fn an_order_is_notified_through_its_own_stack_only() -> Result<()> {
    let (stack, other) = tokio::try_join!(Stack::shared(), Stack::shared())?;
    let producer = stack.producer().start().await?;
    let consumer = stack.consumer().start().await?;
    producer.ready(PATIENCE).await?;
    consumer.ready(PATIENCE).await?;

    let order = Api::new(&producer)?.place("alice", None).await?.acked(0)?;

    let notifications = format!("{}.notifications", stack.topic());
    let notification = eventually("the notification", PATIENCE, || async {
        let records = stack.read_topic(&notifications, Isolation::ReadCommitted).await.ok()?;
        records.first()?.json::<Value>().ok()
    })
    .await?;
    assert_eq!(notification["order_id"], order.id);
    eventually("the receipt", PATIENCE, || stack.s3().get_object().bucket(stack.bucket()).key(&order.receipt).send())
        .await?;

    let elsewhere = other.read_topic(&other.topic(), Isolation::ReadUncommitted).await?;
    assert!(elsewhere.is_empty(), "an order is in another stack's topic: {elsewhere:?}");
    let mut shard = other.shard(1).await?;
    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&mut shard).await?;
    assert_eq!(orders, 0);
    Ok(())
}

#[tokio::test]
async fn a_killed_producer_comes_back_as_the_same_instance() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().instance("twice").start().await?;
    producer.ready(PATIENCE).await?;
    producer.kill();
    producer.start_again().await?;
    producer.ready(PATIENCE).await?;
    assert_eq!(producer.name(), "twice");
    let answer = http::client().get(format!("{}/health", producer.url()?)).send().await?;
    assert_eq!(answer.status(), 200);
    Ok(())
}

#[tokio::test]
async fn a_stack_of_its_own_can_lose_a_shard_and_get_it_back() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let producer = stack.producer().start().await?;
    producer.ready(PATIENCE).await?;
    stack.postgres(1).kill();
    assert!(stack.shard(1).await.is_err(), "the killed shard answered");
    stack.shard(2).await?;
    stack.postgres(1).start_again().await?;
    stack.shard(1).await?;
    Ok(())
}
