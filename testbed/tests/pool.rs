//! What a pool of Postgres connections does when one of them dies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orderflow_service::postgres::{ask, pool_options};
use orderflow_testbed::{Link, Postgres, Proxy, eventually, folder, postgres};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_idle_connection_that_has_died_is_replaced_before_it_is_used() -> Result<()> {
    let server = Postgres::start(folder::of_this_test_process()?, "pool-postgres").await?;
    let dsn = server.create_database("orders").await?;
    let pool = pool_options(1).connect_lazy(&dsn)?;
    let backend = async || {
        ask(&pool, PATIENCE, async |connection| {
            sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(connection).await
        })
        .await
    };
    let first = backend().await.context("ask over the first connection")?;
    ensure!(backend().await? == first, "a connection that is well should be used again");

    // Until it has been idle for a moment it is taken for alive.
    eventually("the connection to be idle for longer", PATIENCE, async || {
        const IDLE: &str =
            "SELECT clock_timestamp() - state_change > interval '2 s' FROM pg_stat_activity WHERE pid = $1";
        let mut other = postgres::connect(&dsn).await?;
        let idle: bool = sqlx::query_scalar(IDLE).bind(first).fetch_one(&mut other).await?;
        ensure!(idle, "it was used a moment ago");
        Ok(())
    })
    .await?;
    eventually("the connection to be dead", PATIENCE, async || {
        let mut other = postgres::connect(&dsn).await?;
        let was_there: bool =
            sqlx::query_scalar("SELECT pg_terminate_backend($1)").bind(first).fetch_one(&mut other).await?;
        ensure!(!was_there, "it is there");
        Ok(())
    })
    .await?;
    let second = backend().await.context("ask after the connection has died")?;
    ensure!(second != first, "backend {first} is dead");
    Ok(())
}

/// sqlx asks a connection whether it is alive when it is put back, and would wait for that as long as TCP does.
#[tokio::test]
async fn a_connection_that_falls_silent_as_it_is_put_back_leaves_its_place() -> Result<()> {
    let server = Postgres::start(folder::of_this_test_process()?, "silent-postgres").await?;
    let network = Proxy::start(server.port()).await?;
    let dsn = server.create_database("orders").await?;
    let dsn = dsn.replace(&format!(":{}/", server.port()), &format!(":{}/", network.port()));
    let pool = pool_options(1).connect_lazy(&dsn)?;
    ask(&pool, PATIENCE, async |connection| {
        let answer = sqlx::query("SELECT 1").execute(connection).await;
        network.set(Link::Swallowing);
        answer
    })
    .await?;
    ensure!(pool.size() == 1, "{} connections", pool.size());
    eventually("its place to be free", PATIENCE, async || {
        ensure!(pool.size() == 0, "{} connections", pool.size());
        Ok(())
    })
    .await
}
