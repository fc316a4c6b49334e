//! Consumers come, go, freeze, and lose their broker in the middle of a transaction, and still send one notification
//! per event.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Isolation, Service, Stack, api::Api, eventually, wait::PATIENCE};
use tokio::time::{Duration, Instant, sleep_until};

use crate::{outages::producer, support::expect_each_exactly_once};

async fn notified(stack: &Stack) -> Result<usize> {
    Ok(stack.read_topic(&format!("{}.notifications", stack.topic()), Isolation::ReadCommitted).await?.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_broker_aborts_is_repeated() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let producer = producer(&stack).start().await?;
    producer.ready(PATIENCE).await?;
    let acked = Api::new(&producer)?.place_many(1500).await?;
    // It waits inside its first transaction, with all records produced and none committed.
    let consumer = stack.consumer().env("FAILPOINTS", "consumer::before-commit=1*sleep(4000)").start().await?;
    eventually("a transaction has produced", PATIENCE, async || {
        let all =
            stack.read_topic(&format!("{}.notifications", stack.topic()), Isolation::ReadUncommitted).await?.len();
        ensure!(all > 0, "nothing is produced yet");
        Ok(())
    })
    .await?;
    stack.kafka().pause();
    // The fault itself: longer than the transaction timeout of 10 s and the broker's check for such transactions.
    sleep_until(Instant::now() + Duration::from_secs(15)).await;
    stack.kafka().resume();
    expect_each_exactly_once(&stack, &acked).await?;
    ensure!(consumer.is_running(), "the consumer should have healed without a restart");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_that_come_and_go_during_load_notify_once() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = producer(&stack).start().await?;
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;
    let (first, _second) = (stack.consumer().start().await?, stack.consumer().start().await?);
    let sending = tokio::spawn(async move { api.place_many(1500).await });
    eventually("the first notifications", PATIENCE, async || {
        ensure!(notified(&stack).await? > 200, "too few");
        Ok(())
    })
    .await?;
    first.kill();
    let _third = stack.consumer().start().await?;
    let acked = sending.await??;
    expect_each_exactly_once(&stack, &acked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_killed_after_its_commit_or_frozen_in_a_transaction_notifies_once() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = producer(&stack).start().await?;
    producer.ready(PATIENCE).await?;
    // More than one transaction holds, which is 4,000.
    let acked = Api::new(&producer)?.place_many(4200).await?;

    let dying = stack.consumer().env("FAILPOINTS", "consumer::after-commit=return").start().await?;
    dying.process().wait_for_exit(PATIENCE).await.context("the failpoint was never reached")?;
    // Frozen between producing and committing, and resumed only when another has done its work.
    let frozen = stack.consumer().env("FAILPOINTS", "consumer::before-commit=1*sleep(3000)").start().await?;
    eventually("the consumer to be in a transaction", PATIENCE, async || {
        let all =
            stack.read_topic(&format!("{}.notifications", stack.topic()), Isolation::ReadUncommitted).await?.len();
        ensure!(all > notified(&stack).await?, "no open transaction");
        Ok(())
    })
    .await?;
    frozen.pause();
    let _living = stack.consumer().start().await?;
    eventually("another does its work", PATIENCE, async || {
        let now = notified(&stack).await?;
        ensure!(now == acked.len(), "{now} of {} notifications", acked.len());
        Ok(())
    })
    .await?;
    frozen.resume();
    // Orders after the thaw, so that a zombie would have an effect.
    let more = Api::new(&producer)?.place_many(200).await?;
    expect_each_exactly_once(&stack, &[acked, more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_offset_outside_the_log_stops_the_consumer_with_an_error() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = producer(&stack).start().await?;
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;
    let acked = api.place_many(50).await?;
    let consumer = stack.consumer().start().await?;
    expect_each_exactly_once(&stack, &acked).await?;
    let stopped = consumer.process().terminate(Duration::from_secs(20)).await?;
    ensure!(stopped.success(), "the consumer ended with {stopped}");
    api.place_many(50).await?;
    eventually("the events are published", PATIENCE, async || {
        ensure!(stack.read_topic(&stack.topic(), Isolation::ReadCommitted).await?.len() == 100, "not all");
        Ok(())
    })
    .await?;

    delete_all_records(&stack).await?;
    let consumer = stack.consumer().start().await?;
    let status = consumer.process().wait_for_exit(PATIENCE).await.context("it went on silently")?;
    ensure!(!status.success(), "the consumer ended with {status}");
    let log = consumer.process().log_since_start();
    ensure!(log.contains(&stack.topic()) && log.contains("kafka-consumer-groups"), "no clear message: {log}");
    Ok(())
}

/// Moves the start of each partition's log to its end, as an expired retention would.
async fn delete_all_records(stack: &Stack) -> Result<()> {
    use rdkafka::{
        ClientConfig, Offset, TopicPartitionList,
        admin::{AdminClient, AdminOptions},
        client::DefaultClientContext,
    };
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", stack.kafka().bootstrap()).create()?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..6 {
        partitions.add_partition_offset(&stack.topic(), partition, Offset::End)?;
    }
    let deleted = admin.delete_records(&partitions, &AdminOptions::new()).await?;
    for element in deleted.elements() {
        element.error()?;
    }
    Ok(())
}
