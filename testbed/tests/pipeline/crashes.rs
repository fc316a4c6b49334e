//! One of our processes is killed or frozen while orders flow: every order that was answered 201 exists exactly once.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use orderflow_testbed::{
    Isolation, Service, Stack,
    api::{Acked, Api, user},
    eventually,
    wait::PATIENCE,
};
use reqwest::StatusCode;
use tokio::time::{Instant, sleep_until};

use crate::{
    outages::{place_in_series, producer},
    support::{expect_each_exactly_once, stored},
};

/// Sends orders over 16 connections to the address in `url`, until `count` of them were answered 201. Orders without a
/// response are left alone: they may exist or not.
async fn place_through_crashes(url: &Mutex<String>, count: usize, acked: &Mutex<Vec<Acked>>) {
    let address = || url.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let client = orderflow_testbed::http::client();
    stream::iter(0..count)
        .for_each_concurrent(16, async |sequence| {
            loop {
                let api = Api { client: client.clone(), url: address() };
                match api.place(&user(sequence), None).await {
                    Ok(reply) if reply.status == StatusCode::CREATED => {
                        let order = reply.acked(sequence).expect("a 201 has an order");
                        acked.lock().unwrap_or_else(PoisonError::into_inner).push(order);
                        return;
                    }
                    // Refused, or no server: a client would retry in a moment.
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await;
}

fn count(acked: &Mutex<Vec<Acked>>) -> usize {
    acked.lock().unwrap_or_else(PoisonError::into_inner).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_killed_in_the_middle_of_2000_orders_loses_and_duplicates_none() -> Result<()> {
    let stack = Stack::shared().await?;
    let _consumer = stack.consumer().start().await?;
    let producer = producer(&stack).start().await?;
    producer.ready(PATIENCE).await?;
    let (url, acked) = (Arc::new(Mutex::new(producer.url()?)), Arc::new(Mutex::new(Vec::new())));
    let sending = tokio::spawn({
        let (url, acked) = (url.clone(), acked.clone());
        async move { place_through_crashes(&url, 2000, &acked).await }
    });
    for threshold in [500, 1000, 1500] {
        eventually("orders are answered", PATIENCE, async || count(&acked) >= threshold).await?;
        producer.kill();
        producer.start_again().await?;
        *url.lock().unwrap_or_else(PoisonError::into_inner) = producer.url()?;
    }
    sending.await?;
    let acked = acked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    expect_each_exactly_once(&stack, &acked).await
}

/// Runs a producer that kills itself at a failpoint, then one that does not.
async fn producer_dies_at(failpoints: &str) -> Result<()> {
    let stack = Stack::shared().await?;
    let _consumer = stack.consumer().start().await?;
    let dying = producer(&stack).env("FAILPOINTS", failpoints).start().await?;
    let (url, acked) = (Arc::new(Mutex::new(dying.url()?)), Arc::new(Mutex::new(Vec::new())));
    let sending = tokio::spawn({
        let (url, acked) = (url.clone(), acked.clone());
        async move { place_through_crashes(&url, 200, &acked).await }
    });
    dying.process().wait_for_exit(PATIENCE).await.context("the failpoint was never reached")?;
    let living = producer(&stack).start().await?;
    *url.lock().unwrap_or_else(PoisonError::into_inner) = living.url()?;
    sending.await?;
    let acked = acked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    expect_each_exactly_once(&stack, &acked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_killed_between_kafkas_commit_and_the_delete_publishes_nothing_twice() -> Result<()> {
    producer_dies_at("relay::after-commit=1*off->return").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_killed_before_kafkas_commit_publishes_everything_once() -> Result<()> {
    producer_dies_at("relay::before-commit=1*off->return").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_killed_between_the_shards_commit_and_its_reply_leaves_whole_orders() -> Result<()> {
    producer_dies_at("writer::after-commit=5*off->return").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_killed_after_writing_receipts_writes_them_to_the_same_place() -> Result<()> {
    producer_dies_at("receipts::before-delete=1*off->return").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_killed_in_the_middle_notifies_once_and_another_takes_over() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = producer(&stack).start().await?;
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;
    // Enough for two transactions.
    let acked = api.place_many(4200).await?;
    let notifications = format!("{}.notifications", stack.topic());
    let seen = async || anyhow::Ok(stack.read_topic(&notifications, Isolation::ReadCommitted).await?.len());

    let dying = stack.consumer().env("FAILPOINTS", "consumer::before-commit=1*off->return").start().await?;
    dying.process().wait_for_exit(PATIENCE).await.context("the failpoint was never reached")?;
    let before = seen().await?;
    ensure!(before < acked.len(), "the consumer was killed too late to show anything");
    let _living = stack.consumer().start().await?;
    // The session of the killed consumer ends after 6 s, its transaction after 10 s.
    eventually("another consumer goes on", Duration::from_secs(15), async || {
        let now = seen().await?;
        ensure!(now > before, "still {now} notifications");
        Ok(())
    })
    .await?;
    expect_each_exactly_once(&stack, &acked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_frozen_for_30_seconds_neither_duplicates_nor_loses_events() -> Result<()> {
    let stack = Stack::shared().await?;
    let _consumer = stack.consumer().start().await?;
    let first = producer(&stack).start().await?;
    first.ready(PATIENCE).await?;
    let first_api = Api::new(&first)?;
    for shard in [1, 2] {
        eventually("the first leads", PATIENCE, async || first.leads_relay(shard).await.unwrap_or(false)).await?;
    }
    let second = producer(&stack).start().await?;
    second.ready(PATIENCE).await?;
    let second_api = Api::new(&second)?;

    let mut acked = place_in_series(&first_api, "before").await?;
    // Orders in flight, so that the freeze is likely to hit a transaction.
    let sending = tokio::spawn(async move {
        let _ = place_in_series(&first_api, "lost").await;
    });
    first.pause();
    let thaw = Instant::now() + Duration::from_secs(30);
    acked.extend(place_in_series(&second_api, "while").await?);
    for shard in [1, 2] {
        eventually("the second takes over", PATIENCE, async || second.leads_relay(shard).await.unwrap_or(false))
            .await?;
    }
    // The fault itself: longer than every lease and timeout.
    sleep_until(thaw).await;
    first.resume();
    sending.await?;
    acked.extend(place_in_series(&second_api, "after").await?);
    expect_each_exactly_once(&stack, &acked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_producers_keep_each_users_order_and_leadership_moves_when_one_is_killed() -> Result<()> {
    let stack = Stack::shared().await?;
    let _consumer = stack.consumer().start().await?;
    let (first, second) = (producer(&stack).start().await?, producer(&stack).start().await?);
    first.ready(PATIENCE).await?;
    second.ready(PATIENCE).await?;
    let (first_api, second_api) = (Api::new(&first)?, Api::new(&second)?);
    let (one, two) = tokio::try_join!(place_in_series(&first_api, "one"), place_in_series(&second_api, "two"))?;
    let mut acked = [one, two].concat();

    first.kill();
    for shard in [1, 2] {
        eventually("the second leads", PATIENCE, async || second.leads_relay(shard).await.unwrap_or(false)).await?;
    }
    acked.extend(place_in_series(&second_api, "alone").await?);
    expect_each_exactly_once(&stack, &acked).await?;
    ensure!(
        stored(&stack, 1).await?.len() + stored(&stack, 2).await?.len() == acked.len(),
        "an order that no client placed"
    );
    Ok(())
}
