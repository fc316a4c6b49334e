//! What the relay makes of an outbox that it alone can see in full.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Isolation, Stack, eventually, http};
use sqlx::{Connection, PgConnection};

use crate::{outages::producer, support::PATIENCE};

/// Events of one user with these numbers as their payloads.
async fn insert_events(shard: &mut PgConnection, first: i32, last: i32) -> Result<()> {
    const INSERT: &str = "INSERT INTO outbox (event_id, order_id, user_id, payload, created_at) \
                          SELECT gen_random_uuid(), gen_random_uuid(), 'alice', convert_to(n::text, 'UTF8'), now() \
                          FROM generate_series($1, $2) AS n";
    sqlx::query(INSERT).bind(first).bind(last).execute(shard).await.context("insert events")?;
    Ok(())
}

/// Its `seq` is the lowest, and nobody sees it before the relay has read a whole batch of those behind it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_committed_behind_its_followers_is_published_once_like_them() -> Result<()> {
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
