//! Clients that close their side of a connection. A client that still waits for its response gets it. If a client has
//! disconnected, its order is withdrawn from the queue, and its query returns its connection to the pool.

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use orderflow_testbed::{
    Service, Stack,
    api::{Api, order_of},
    eventually,
    wait::PATIENCE,
};
use sqlx::{Connection, PgConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{dependencies_up, serving, stored};

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
async fn a_client_that_has_closed_its_sending_side_is_answered() -> Result<()> {
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
async fn the_order_of_a_disconnected_client_is_withdrawn_and_a_waiting_one_answered() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("ORDER_TIMEOUT_MS", "60000").env("LOG", "debug").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
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

/// Counts on one connection to the shard, because each new one would count as a session itself.
async fn sessions(shard: &mut PgConnection) -> Result<i64> {
    const SESSIONS: &str = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
    Ok(sqlx::query_scalar(SESSIONS).fetch_one(shard).await?)
}

/// A lock delays the queries until their clients have disconnected, and then lets them go on. On a busy machine a few
/// rounds may exceed the deadline of a query, and cost their connections.
#[tokio::test(flavor = "multi_thread")]
async fn lists_whose_clients_disconnect_keep_their_connections() -> Result<()> {
    const LISTS: usize = 2_000;
    const AT_ONCE: usize = 16;
    /// The limit of new sessions: queries that ended with their clients would cost a connection in each of the 125
    /// rounds.
    const FEW: i64 = 60;
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("LOG", "info,orderflow_producer::http=debug").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    let address = api.url.strip_prefix("http://").context("the API's address")?;
    let (mut shard, mut watch) = (stack.shard(1).await?, stack.shard(1).await?);
    let before = sessions(&mut watch).await?;
    for round in 1..=LISTS / AT_ONCE {
        let mut lock = shard.begin().await?;
        sqlx::raw_sql("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await?;
        let clients = try_join_all((0..AT_ONCE).map(async |_| {
            let mut client = TcpStream::connect(address).await?;
            let head = format!("GET /api/orders?user_id=alice HTTP/1.1\r\nhost: {address}\r\n\r\n");
            client.write_all(head.as_bytes()).await?;
            anyhow::Ok(client)
        }));
        let clients = clients.await?;
        let waiting = async |watch: &mut PgConnection| -> Result<i64> {
            const WAITING: &str = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database \
                                   WHERE datname = current_database() AND NOT granted";
            Ok(sqlx::query_scalar(WAITING).fetch_one(watch).await?)
        };
        let held_up = async {
            while waiting(&mut watch).await? == 0 {}
            anyhow::Ok(())
        };
        timeout(PATIENCE, held_up).await.context("wait for a question to be held up")??;
        for client in clients {
            // Send a reset, as a killed client does.
            client.set_zero_linger()?;
        }
        eventually("the connections to end", PATIENCE, async || {
            let ended = producer.process().log_since_start().matches("a connection ended").count();
            ensure!(ended == round * AT_ONCE, "{ended} in round {round}");
            Ok(())
        })
        .await?;
        lock.rollback().await?;
    }
    let made = sessions(&mut watch).await? - before;
    ensure!(made < FEW, "{LISTS} lists made {made} sessions");
    ensure!(api.get("/api/orders?user_id=alice").await?.status.is_success());
    Ok(())
}
