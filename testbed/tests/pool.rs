//! A pool of Postgres connections when one of them dies or stops answering.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use orderflow_service::postgres::{AskError, Pool};
use orderflow_testbed::{Link, Postgres, Proxy, eventually, folder, postgres, wait::PATIENCE};

/// The longest one query may take: shorter than any timeout of TCP, so that the pool itself must detect a dead
/// connection.
const ANSWER: Duration = Duration::from_secs(30);

fn pool_of_one(dsn: &str) -> Result<Pool> {
    Ok(Pool::new(1, dsn.parse()?, |_| Box::pin(async { Ok(()) })))
}

/// Returns the pid of the server process that answers.
async fn backend(pool: &Pool, longest: Duration) -> Result<i32, AskError> {
    pool.ask(longest, async |connection| sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await)
        .await
}

/// Waits until the connection has been idle for longer than the pool trusts one without a check.
async fn has_been_idle(dsn: &str, backend: i32) -> Result<()> {
    eventually("the connection to be idle for longer", PATIENCE, async || {
        const IDLE: &str =
            "SELECT clock_timestamp() - state_change > interval '2 s' FROM pg_stat_activity WHERE pid = $1";
        let mut other = postgres::connect(dsn).await?;
        let idle: bool = sqlx::query_scalar(IDLE).bind(backend).fetch_one(&mut other).await?;
        ensure!(idle, "it was used a moment ago");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_dead_idle_connection_is_replaced_before_it_is_used() -> Result<()> {
    let server = Postgres::start(folder::for_test_process()?, "pool-postgres").await?;
    let dsn = server.create_database("orders").await?;
    let pool = pool_of_one(&dsn)?;
    let first = backend(&pool, ANSWER).await.context("query over the first connection")?;
    ensure!(backend(&pool, ANSWER).await? == first, "a connection that is well should be used again");

    has_been_idle(&dsn, first).await?;
    eventually("the connection to be dead", PATIENCE, async || {
        let mut other = postgres::connect(&dsn).await?;
        let was_there: bool =
            sqlx::query_scalar("SELECT pg_terminate_backend($1)").bind(first).fetch_one(&mut other).await?;
        ensure!(!was_there, "it still exists");
        Ok(())
    })
    .await?;
    let second = backend(&pool, ANSWER).await.context("query after the connection has died")?;
    ensure!(second != first, "backend {first} is dead");
    Ok(())
}

#[tokio::test]
async fn a_silent_idle_connection_is_replaced_before_it_is_used() -> Result<()> {
    let server = Postgres::start(folder::for_test_process()?, "frozen-postgres").await?;
    let dsn = server.create_database("orders").await?;
    let pool = pool_of_one(&dsn)?;
    let first = backend(&pool, ANSWER).await.context("query over the first connection")?;
    has_been_idle(&dsn, first).await?;
    kill(Pid::from_raw(first), Signal::SIGSTOP)?;
    let second = backend(&pool, ANSWER).await;
    kill(Pid::from_raw(first), Signal::SIGCONT)?;
    ensure!(second.context("query beside the frozen backend")? != first, "backend {first} was frozen");
    Ok(())
}

#[tokio::test]
async fn a_connection_that_stops_answering_leaves_the_pool() -> Result<()> {
    let server = Postgres::start(folder::for_test_process()?, "silent-postgres").await?;
    let network = Proxy::start(server.port()).await?;
    let dsn = server.create_database("orders").await?;
    let pool = pool_of_one(&dsn.replace(&format!(":{}/", server.port()), &format!(":{}/", network.port())))?;
    let first = backend(&pool, ANSWER).await.context("query over the first connection")?;
    network.set(Link::Swallowing);
    for _ in 0..3 {
        let silence = backend(&pool, Duration::from_millis(200)).await;
        ensure!(matches!(silence, Err(AskError::Timeout(_))), "{silence:?}");
    }
    network.set(Link::Open);
    let second = backend(&pool, ANSWER).await.context("query when the network is back")?;
    ensure!(second != first, "backend {first} was given up");
    Ok(())
}
