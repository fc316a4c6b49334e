//! The relay: order, batches and refusals of the events of an outbox that only it reads.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Isolation, Stack, eventually, http, wait::PATIENCE};
use rdkafka::{
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
};
use sqlx::{Connection, PgConnection};

use crate::outages::producer;

/// Inserts events of one user with these numbers as their payloads.
async fn insert_events(shard: &mut PgConnection, first: i32, last: i32) -> Result<()> {
    const INSERT: &str = "INSERT INTO outbox (event_id, order_id, user_id, payload, created_at) \
                          SELECT gen_random_uuid(), gen_random_uuid(), 'alice', convert_to(n::text, 'UTF8'), now() \
                          FROM generate_series($1, $2) AS n";
    sqlx::query(INSERT).bind(first).bind(last).execute(shard).await.context("insert events")?;
    Ok(())
}

/// The event has the lowest `seq`, and is not visible before the relay has read a whole batch of those behind it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_committed_after_later_ones_is_published_once() -> Result<()> {
    // More than a batch, which is 4,000.
    const EVENTS: i32 = 6000;
    let stack = Stack::shared().await?;
    let (mut shard, mut another) = (stack.shard(1).await?, stack.shard(1).await?);
    let mut late = another.begin().await?;
    insert_events(&mut late, 0, 0).await?;
    insert_events(&mut shard, 1, EVENTS).await?;

    let producer = producer(&stack).env("FAILPOINTS", "relay::before-read-ahead=return").start().await?;
    let read = async |isolation| stack.read_topic(&stack.topic(), isolation).await;
    eventually("a first batch is being published", PATIENCE, async || {
        let published = read(Isolation::ReadUncommitted).await?.len();
        ensure!(published >= 4000, "{published} events");
        Ok(())
    })
    .await?;
    late.commit().await?;
    let failpoint = format!("{}/failpoints/relay::before-read-ahead", producer.admin_url()?);
    http::client().put(failpoint).body("off").send().await?.error_for_status()?;

    eventually("the outbox is empty", PATIENCE, async || {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut stack.shard(1).await?).await?;
        ensure!(left == 0, "{left} events are left");
        Ok(())
    })
    .await?;
    let published = read(Isolation::ReadCommitted).await?;
    let different: BTreeSet<_> = published.iter().map(orderflow_testbed::Record::text).collect();
    let expected = EVENTS as usize + 1;
    ensure!(published.len() == expected && different.len() == expected, "{} of {expected}", published.len());
    Ok(())
}

/// Limits the size of the record batches that Kafka takes for one partition of a topic.
async fn limit_batches(stack: &Stack, topic: &str, bytes: &str) -> Result<()> {
    const SETTING: &str = "max.message.bytes";
    let admin: AdminClient<DefaultClientContext> = stack.kafka().client().create()?;
    let (of_topic, options) = (ResourceSpecifier::Topic(topic), AdminOptions::new());
    let limit = AlterConfig::new(of_topic).set(SETTING, bytes);
    for altered in admin.alter_configs(&[limit], &options).await? {
        altered.map_err(|(resource, error)| anyhow::anyhow!("{resource:?}: {error}"))?;
    }
    eventually("the limit to hold", PATIENCE, async || {
        for config in admin.describe_configs(&[of_topic], &options).await? {
            let config = config?;
            let is = config.get(SETTING).and_then(|entry| entry.value.as_deref());
            ensure!(is == Some(bytes), "{SETTING} is {is:?}");
        }
        Ok(())
    })
    .await
}

/// One progress record of all these events would have 40 KB, and the topic takes 4.
#[tokio::test(flavor = "multi_thread")]
async fn a_progress_record_that_kafka_refuses_halves_the_batch() -> Result<()> {
    const EVENTS: i32 = 1000;
    let stack = Stack::shared().await?;
    let mut shard = stack.shard(1).await?;
    insert_events(&mut shard, 1, EVENTS).await?;
    limit_batches(&stack, &format!("{}.relay", stack.topic()), "4000").await?;

    let _producer = producer(&stack).start().await?;
    eventually("the outbox is empty", PATIENCE, async || {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut stack.shard(1).await?).await?;
        ensure!(left == 0, "{left} events are left");
        Ok(())
    })
    .await?;
    let published = stack.read_topic(&stack.topic(), Isolation::ReadCommitted).await?;
    let numbers: Vec<i32> = published.iter().map(|event| event.text().parse()).collect::<Result<_, _>>()?;
    ensure!(numbers.iter().copied().eq(1..=EVENTS), "not each once and in order: {numbers:?}");
    Ok(())
}

/// All of the backlog is refused, as one batch and then as smaller ones, although only one event is too large.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kafka_refuses_is_moved_aside_and_blocks_no_other() -> Result<()> {
    const EVENTS: i32 = 1000;
    const LARGE: &str = "INSERT INTO outbox (event_id, order_id, user_id, payload, created_at) \
                         SELECT gen_random_uuid(), gen_random_uuid(), 'alice', \
                         convert_to(string_agg(md5(random()::text), ''), 'UTF8'), now() FROM generate_series(1, 200) \
                         RETURNING event_id::text";
    let stack = Stack::shared().await?;
    let mut shard = stack.shard(1).await?;
    insert_events(&mut shard, 1, EVENTS / 2).await?;
    let large: String = sqlx::query_scalar(LARGE).fetch_one(&mut shard).await.context("insert a large event")?;
    insert_events(&mut shard, EVENTS / 2 + 1, EVENTS).await?;
    limit_batches(&stack, &stack.topic(), "2000").await?;

    let producer = producer(&stack).start().await?;
    eventually("the outbox is empty", PATIENCE, async || {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut stack.shard(1).await?).await?;
        ensure!(left == 0, "{left} events are left");
        Ok(())
    })
    .await?;
    const DEAD: &str = "SELECT event_id::text, reason FROM outbox_dead";
    let dead: Vec<(String, String)> = sqlx::query_as(DEAD).fetch_all(&mut shard).await.context("read outbox_dead")?;
    ensure!(matches!(&dead[..], [(event, reason)] if *event == large && reason.contains("too large")), "{dead:?}");
    let published = stack.read_topic(&stack.topic(), Isolation::ReadCommitted).await?;
    let numbers: Vec<i32> = published.iter().map(|event| event.text().parse()).collect::<Result<_, _>>()?;
    ensure!(numbers.iter().copied().eq(1..=EVENTS), "not each once and in order: {numbers:?}");
    let metrics = http::client().get(format!("{}/metrics", producer.admin_url()?)).send().await?.text().await?;
    ensure!(metrics.contains(r#"orderflow_relay_dead_total{shard="shard1"} 1"#), "{metrics}");
    Ok(())
}
