//! An outage on the page: it names the part, shows the true outcome of each order, and shows the recovery.

use anyhow::{Result, ensure};
use orderflow_testbed::{Isolation, Service, Stack, eventually, wait::PATIENCE};

use crate::{
    page::{DONE, NOT_NOTIFIED, NOTIFIED, PENDING, is_open},
    support::{Shop, on},
};

/// The events that wait for Kafka.
const PUBLISHING: &str = "#orders-list .journey li:nth-child(3)[data-state=waiting]";

#[tokio::test(flavor = "multi_thread")]
async fn receipts_wait_for_a_frozen_s3_and_are_written_afterwards() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let producer = stack.producer().env("S3_TIMEOUT_MS", "500").env("RECEIPT_LEASE_MS", "5000");
    on(stack, producer, async |shop: &Shop| {
        let page = &shop.page;
        page.shows("li.part.s3[data-state=good]", |_| true).await?;
        shop.provokes_failures();
        shop.stack.object_store().pause();
        page.fill_order("alice", "Keyboard").await?;
        page.click("#place-form button").await?;
        // Only the receipt waits for S3.
        page.shows("#outcome", |text| text.contains("Stored on shard1") && text.contains("Notified after")).await?;
        page.show_all(PENDING, |receipts| receipts.len() == 1).await?;
        page.show_all(NOTIFIED, |orders| orders.len() == 1).await?;
        page.shows("li.part.s3[data-state=bad]", |text| text.contains("down")).await?;
        page.shows("#activity-log", |text| text.contains("S3 is down")).await?;
        page.click("#outcome-path").await?;
        page.shows("#order-path[open] #path-hops li[data-state=waiting]", |text| text.contains("Receipt")).await?;
        page.shows("#path-state", |text| text.contains("The order is safe")).await?;

        shop.stack.object_store().resume();
        page.show_all("#path-hops li[data-state=done]", |hops| hops.len() == 5).await?;
        page.shows("#path-receipt", |text| text.contains("Keyboard")).await?;
        page.click("#path-close").await?;
        page.show_all(DONE, |steps| steps.len() == 4).await?;
        page.shows("li.part.s3[data-state=good]", |_| true).await?;
        page.shows("#activity-log", |text| text.contains("S3 is up again")).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_a_shard_that_is_down_are_refused_and_others_accepted() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let producer = stack.producer();
    on(stack, producer, async |shop: &Shop| {
        let page = &shop.page;
        shop.place("zara", "Before").await?;
        page.shows("#orders-list", |text| text.contains("Before")).await?;
        shop.provokes_failures();
        shop.stack.postgres(2).stop().await?;
        page.shows("li.part.shard[data-state=bad]", |text| text.contains("shard2")).await?;
        page.shows("#orders-state", |text| text.contains("No answer from shard2")).await?;

        page.fill_order("zara", "Lamp").await?;
        page.shows("#user_id-note", |text| text.contains("which is down now")).await?;
        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Not stored.")).await?;
        page.fill_order("alice", "Keyboard").await?;
        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Stored on shard1") && text.contains("Notified after")).await?;
        page.shows("#orders-list", |text| text.contains("alice") && !text.contains("Lamp")).await?;

        shop.stack.postgres(2).start_again().await?;
        page.show_all("li.part.shard[data-state=good]", |shards| shards.len() == 2).await?;
        page.shows("#orders-state", |text| !text.contains("No answer")).await?;
        page.shows("#orders-list", |text| text.contains("Before") && text.contains("alice")).await?;
        page.fill_order("zara", "Lamp").await?;
        eventually("an order of shard 2", PATIENCE, async || {
            page.click("#place-form button").await?;
            let outcome = page.text("#outcome").await?;
            ensure!(outcome.contains("Stored on shard2"), "{outcome}");
            Ok(())
        })
        .await?;
        ensure!(shop.orders_of("zara").await?.len() == 2, "{:?}", shop.orders_of("zara").await?);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_wait_for_a_consumer_and_are_sent_once() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer();
    on(stack, producer, async |shop: &Shop| {
        let page = &shop.page;
        page.shows("li.part.consumer[data-state=good]", |_| true).await?;
        shop.consumer.stop().await?;
        page.shows("li.part.consumer[data-state=bad]", |text| text.contains("no members")).await?;
        page.fill_order("alice", "Keyboard").await?;
        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Stored on shard1")).await?;
        page.show_all(NOT_NOTIFIED, |orders| orders.len() == 1 && orders.iter().all(|step| is_open(step))).await?;
        page.click("#outcome-path").await?;
        page.shows("#path-hops li[data-state=waiting]", |text| text.contains("Waiting for the consumer")).await?;

        shop.consumer.start_again().await?;
        page.show_all("#path-hops li[data-state=done]", |hops| hops.len() == 5).await?;
        page.click("#path-close").await?;
        page.show_all(NOTIFIED, |orders| orders.len() == 1).await?;
        page.shows("li.part.consumer[data-state=good]", |_| true).await?;
        shop.notified(1).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_accepted_while_kafka_is_frozen_and_notified_once_afterwards() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let producer = stack.producer();
    on(stack, producer, async |shop: &Shop| {
        let page = &shop.page;
        shop.place("alice", "Before").await?;
        page.show_all(NOTIFIED, |orders| orders.len() == 1).await?;
        page.shows("li.part.kafka .word", |word| word == "up").await?;
        shop.provokes_failures();
        shop.stack.kafka().pause();
        page.shows("li.part.kafka .word", |word| word == "down").await?;
        page.shows("#activity-log", |text| text.contains("Kafka is down")).await?;
        page.fill_order("alice", "Keyboard").await?;
        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Stored on shard1")).await?;
        shop.place("nora", "Lamp").await?;
        page.shows("#orders-list", |text| text.contains("Keyboard") && text.contains("Lamp")).await?;
        page.show_all(PUBLISHING, |orders| orders.len() == 2).await?;
        page.show_all(NOT_NOTIFIED, |orders| orders.len() == 2 && orders.iter().all(|step| is_open(step))).await?;
        page.show_all(NOTIFIED, |orders| orders.len() == 1).await?;

        shop.stack.kafka().resume();
        page.show_all(NOTIFIED, |orders| orders.len() == 3).await?;
        page.shows("li.part.kafka .word", |word| word == "up").await?;
        let log = page.shows("#activity-log", |text| text.contains("Kafka is up again")).await?;
        ensure!(!log.contains("anew") && !log.contains("missed"), "the feed did not resume: {log}");
        let made =
            shop.stack.read_topic(&format!("{}.notifications", shop.stack.topic()), Isolation::ReadCommitted).await?;
        ensure!(made.len() == 3, "{made:?}");
        Ok(())
    })
    .await
}
