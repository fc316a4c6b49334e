//! Clients that close their side of a connection: a client that still waits for its answer gets it, and the order of a
//! client that has disconnected is withdrawn from the queue.

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use orderflow_testbed::{Service, Stack, eventually};
use sqlx::Connection;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{Api, PATIENCE, dependencies_up, order_of, serving, stored};

/// Sends an order over a connection of its own, which stays open.
async fn send(api: &Api, user: &str) -> Result<TcpStream> {
    let address = api.url.strip_prefix("http://").context("the API's address")?;
    let mut client = TcpStream::connect(address).await?;
    let body = order_of(user);
    let head = format!(
        "POST /api/orders HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.write_all(format!("{head}{body}").as_bytes()).await?;
    Ok(client)
}

async fn answer(mut client: TcpStream) -> Result<String> {
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_ended_its_side_is_answered() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let answers = try_join_all((0..40).map(async |number| {
        let mut client = send(&api, &format!("a-{number}")).await?;
        client.shutdown().await?;
        answer(client).await
    }));
    for answer in answers.await? {
        ensure!(answer.contains("HTTP/1.1 201 Created\r\n"), "{answer:?}");
    }
    assert_eq!(stored(&stack, 1).await?.len(), 40);
    Ok(())
}

/// Blocks the writer with a lock at the first order, so that all others wait in the queue.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_a_client_that_is_gone_is_withdrawn_and_one_that_waits_is_answered() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("ORDER_TIMEOUT_MS", "60000").env("LOG", "debug").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::of(&producer)?;
    let mut shard = stack.shard(1).await?;
    let mut lock = shard.begin().await?;
    sqlx::raw_sql("LOCK TABLE orders IN SHARE MODE").execute(&mut *lock).await?;

    let first = send(&api, "a-first").await?;
    eventually("the writer to be held up", PATIENCE, async || {
        const WAITING: &str = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database \
                               WHERE datname = current_database() AND NOT granted";
        let waiting: i64 = sqlx::query_scalar(WAITING).fetch_one(&mut stack.shard(1).await?).await?;
        ensure!(waiting > 0, "no session waits for the lock");
        Ok(())
    })
    .await?;
    let mut waits = send(&api, "a-waits").await?;
    waits.shutdown().await?;
    let gone = send(&api, "a-gone").await?;
    drop(gone);
    let mut ended = send(&api, "a-ended-and-gone").await?;
    ended.shutdown().await?;
    drop(ended);
    eventually("two disconnected clients to be logged", PATIENCE, async || {
        let log = producer.process().log_since_start();
        let missed = log.matches("the client is gone").count();
        ensure!(missed == 2, "{missed}");
        Ok(())
    })
    .await?;
    lock.rollback().await?;

    let waited = answer(waits).await?;
    let statuses: Vec<&str> = waited.lines().filter(|line| line.starts_with("HTTP/1.1 ")).collect();
    ensure!(statuses.first() == Some(&"HTTP/1.1 100 Continue"), "{waited:?}");
    ensure!(statuses.last() == Some(&"HTTP/1.1 201 Created"), "{waited:?}");
    let mut first = first;
    first.shutdown().await?;
    ensure!(answer(first).await?.contains("HTTP/1.1 201 Created"), "the first order");
    let keys: Vec<String> = stored(&stack, 1).await?.into_iter().map(|(_, receipt)| receipt).collect();
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(keys.iter().all(|key| key.contains("/a-first/") || key.contains("/a-waits/")), "{keys:?}");
    Ok(())
}
