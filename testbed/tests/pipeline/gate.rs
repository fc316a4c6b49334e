//! The gate of a shard's database: an order is stored only where its range is owned at the commit, whatever map the
//! producer knows.

use anyhow::{Context, Result, ensure};
use orderflow_core::{ShardMap, UserId};
use orderflow_testbed::{
    Isolation, Record, Stack,
    api::{Acked, Reply},
    eventually,
    wait::PATIENCE,
};
use reqwest::StatusCode;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::{expect_each_exactly_once, serving, stored};

/// A newer map, which both databases have: all users are on shard 2.
const NEWER: &str = r#"INSERT INTO orderflow_map (epoch, shards, ranges) VALUES (2, 'shard1=,shard2=A-Z', '[
    {"from": "", "range": 0, "shard": 2}, {"from": "A", "range": 3, "shard": 2},
    {"from": "N", "range": 2, "shard": 2}, {"from": "[", "range": 0, "shard": 2}]')"#;

async fn own(connection: &mut PgConnection, ranges: &str) -> Result<()> {
    let statement = format!("UPDATE orderflow_gate SET owned = '{{{ranges}}}'");
    sqlx::query(AssertSqlSafe(statement)).execute(connection).await.map(drop).context("change the gate")
}

/// Gives the users of shard 1 to shard 2.
async fn move_all(stack: &Stack) -> Result<()> {
    let (mut first, mut second) = (stack.shard(1).await?, stack.shard(2).await?);
    for shard in [&mut first, &mut second] {
        sqlx::query(NEWER).execute(shard).await?;
    }
    own(&mut first, "").await?;
    own(&mut second, "0,2,3").await
}

fn created(reply: &Reply) -> Result<Acked> {
    ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
    reply.acked(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_of_a_range_that_no_gate_lists_is_refused_alone() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let mut shard = stack.shard(2).await?;
    own(&mut shard, "2").await?;
    // Concurrent, so that a batch has orders of both ranges.
    let users = ["7up", "nina", "_x", "olga", "42", "zoe"];
    let replies = futures_util::future::try_join_all(users.map(|user| api.place(user, None))).await?;
    let mut acked = Vec::new();
    for (user, reply) in users.into_iter().zip(replies) {
        if user.starts_with(|first: char| first.is_ascii_alphabetic()) {
            acked.push(created(&reply)?);
        } else {
            reply.expect_problem(503, "not-accepted")?;
        }
    }
    let rows = stored(&stack, 2).await?;
    ensure!(rows.len() == acked.len(), "{rows:?}");
    own(&mut shard, "0,2").await?;
    acked.push(created(&api.place("7up", None).await?)?);
    expect_each_exactly_once_without_a_consumer(&stack, &acked).await
}

/// The statement waits for the lock of the gate. Its snapshot is older than the change, and it must see the change.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_waited_for_the_gate_sees_its_change() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let mut shard = stack.shard(1).await?;
    let mut change = shard.begin().await?;
    own(&mut change, "").await?;
    let placed = tokio::spawn({
        let api = api.clone();
        async move { api.place("alice", None).await }
    });
    eventually("the statement to wait for the gate", PATIENCE, async || {
        const WAITS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                             AND wait_event_type = 'Lock' AND query LIKE '%orderflow_gate%')";
        let waits: bool = sqlx::query_scalar(WAITS).fetch_one(&mut stack.shard(1).await?).await?;
        ensure!(waits, "it does not");
        Ok(())
    })
    .await?;
    change.commit().await?;
    placed.await??.expect_problem(503, "not-accepted")?;
    let rows = stored(&stack, 1).await?;
    ensure!(rows.is_empty(), "{rows:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_waits_for_the_end_of_a_fence() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    const FENCE: &str = "UPDATE orderflow_gate SET owned = '{}', fenced = '{1}', \
                         fenced_until = (SELECT clock_timestamp() + interval '500 ms')";
    sqlx::query(FENCE).execute(&mut stack.shard(1).await?).await?;
    let fenced = created(&api.place("alice", None).await?)?;
    let free: bool = sqlx::query_scalar("SELECT bool_and(fenced_until <= clock_timestamp()) FROM orderflow_gate")
        .fetch_one(&mut stack.shard(1).await?)
        .await?;
    ensure!(free, "stored in spite of the fence");
    expect_each_exactly_once_without_a_consumer(&stack, &[fenced]).await
}

/// The producer knows the older map. It hears of the newer one when the shard refuses an order.
#[tokio::test(flavor = "multi_thread")]
async fn orders_follow_their_users_to_the_shard_of_a_newer_map() -> Result<()> {
    let stack = Stack::shared().await?;
    let ((_producer, api), _consumer) = (serving(&stack).await?, stack.consumer().start().await?);
    move_all(&stack).await?;
    let reply = api.place("alice", Some("once")).await?;
    let body = reply.json();
    ensure!((&body["shard"], &body["shard_info"]) == (&"shard2".into(), &"shard2 (A-Z)".into()), "{body}");
    let first = created(&reply)?;
    let again = created(&api.place("alice", Some("once")).await?)?;
    ensure!(again.id == first.id, "another order for the same key");
    let mut acked = api.place_many(60).await?;
    acked.push(first.clone());
    expect_each_exactly_once(&stack, &acked).await?;
    ensure!(stored(&stack, 1).await?.is_empty(), "stored on the former shard");
    let epochs: Vec<i32> =
        sqlx::query_scalar("SELECT DISTINCT map_epoch FROM orders").fetch_all(&mut stack.shard(2).await?).await?;
    ensure!(epochs == [2], "{epochs:?}");

    let events = stack.read_topic(&stack.topic(), Isolation::ReadCommitted).await?;
    let events: Vec<Value> = events.iter().map(Record::json).collect::<Result<_>>()?;
    ensure!(events.iter().all(|event| event["shard"] == 2), "an event names the former shard");
    let receipt = api.receipt(&first.id).await?.text;
    ensure!(receipt.contains("Shard:      shard2 (A-Z)\n"), "{receipt}");
    let list = api.get("/api/orders?user_id=alice&limit=500").await?.ok()?;
    let listed = list["orders"].as_array().context("no list")?.iter().any(|order| order["id"] == first.id.as_str());
    ensure!(listed, "{list}");
    let shards = api.get("/api/shards").await?.ok()?;
    ensure!(shards["shards"][1]["users"] == "A-Z", "{shards}");
    Ok(())
}

/// A list is read from the shard that stores the user, although the producer believes in the older map.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_read_from_the_shard_of_a_newer_map() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    created(&api.place("alice", None).await?)?;
    move_all(&stack).await?;
    let list = api.get("/api/orders?user_id=alice").await?.ok()?;
    ensure!(list["count"] == 0, "read from the former shard: {list}");
    own(&mut stack.shard(2).await?, "0,2").await?;
    api.get("/api/orders?user_id=alice").await?.expect_problem(503, "shard-unavailable").map(drop)
}

/// A move finds its users by an expression of Postgres, which must agree with the routes of the producers.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_finds_the_range_of_a_user_as_the_producers_do() -> Result<()> {
    const RANGE: &str = "SELECT (SELECT count(*) FROM unnest($2::text[]) AS range_from \
                         WHERE range_from COLLATE \"C\" <= upper(user_id COLLATE \"C\")) \
                         FROM unnest($1::text[]) WITH ORDINALITY AS input(user_id, position) ORDER BY position";
    const CHARACTERS: [char; 24] = [
        'a', 'A', 'g', 'G', 'm', 'M', 'n', 'z', 'Z', '0', '9', '_', '-', '@', '[', '{', '`', ' ', 'é', 'É', 'ſ', 'ａ',
        'ß', '😀',
    ];
    let map: ShardMap = "one=A-M+@%C3%A9A,two=GA-GM+0-9,three=N-Z+ZZ-ZZ+*".parse()?;
    let ranges = map.ranges();
    let froms: Vec<&str> = ranges.iter().map(|(from, _)| *from).collect();
    let mut random = fastrand::Rng::with_seed(1);
    let user = |random: &mut fastrand::Rng| -> String {
        (0..random.usize(1..=5)).map(|_| CHARACTERS[random.usize(..CHARACTERS.len())]).collect()
    };
    let users: Vec<String> = (0..20_000).map(|_| user(&mut random)).collect();
    let stack = Stack::shared().await?;
    let found: Vec<i64> =
        sqlx::query_scalar(RANGE).bind(&users).bind(&froms).fetch_all(&mut stack.shard(1).await?).await?;
    for (user, position) in users.iter().zip(found) {
        let (_, by_postgres) = ranges[position as usize - 1];
        let by_producer = map.shard_of(&UserId::parse(user.clone()).map_err(anyhow::Error::msg)?);
        ensure!(by_producer == by_postgres, "{user:?}: {by_producer:?}, in Postgres {by_postgres:?}");
    }
    Ok(())
}

/// Checks rows, receipts and events; nobody notifies.
async fn expect_each_exactly_once_without_a_consumer(stack: &Stack, acked: &[Acked]) -> Result<()> {
    let _consumer = stack.consumer().start().await?;
    expect_each_exactly_once(stack, acked).await
}
