//! A database that is not the one the producer needs. No order is accepted for it, nothing in it is changed, and
//! `/readyz` reports why. Once it is corrected the producer goes on without a restart.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Producer, Service, Stack,
    api::Api,
    eventually, folder,
    load::{Load, Orders, Plan},
    port, provision,
    wait::PATIENCE,
};
use reqwest::StatusCode;
use sqlx::AssertSqlSafe;

use crate::support::{dependencies_up, readiness, serving};

/// Waits until the producer is unready, reports these reasons for these dependencies, and does not accept orders of
/// these users.
async fn turned_away(producer: &Producer, because: &[(&str, &str)], users: &[&str]) -> Result<()> {
    eventually("/readyz to report the reason", PATIENCE, async || {
        let reply = readiness(producer).await?;
        ensure!(reply.status == StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
        for (name, reason) in because {
            let state = &reply.json()["dependencies"][*name];
            let matches = state["reason"].as_str().is_some_and(|found| found.contains(reason));
            ensure!(state["status"] == "unusable" && matches, "{name}: {reply:?}");
        }
        Ok(())
    })
    .await?;
    let api = Api::new(producer)?;
    for user in users {
        let reply = api.place(user, None).await?;
        reply.expect_problem(503, "not-accepted")?;
        ensure!(reply.header("retry-after").is_some(), "{reply:?}");
    }
    Ok(())
}

async fn becomes_ready_and_serves(producer: &Producer) -> Result<()> {
    dependencies_up(producer, &["shard1", "shard2"]).await?;
    producer.ready(PATIENCE).await?;
    let api = Api::new(producer)?;
    for (user, shard) in [("alice", "shard1"), ("zara", "shard2")] {
        let reply = api.place(user, None).await?;
        ensure!(reply.status == StatusCode::CREATED && reply.json()["shard"] == shard, "{reply:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_never_provisioned_is_served_once_it_is() -> Result<()> {
    let stack = Stack::shared().await?;
    let tag = stack.topic().strip_prefix("orders-").context("the stack's tag")?.to_owned();
    let mut environment = stack.env();
    environment.push(("OWNER".to_owned(), format!("test/{tag}")));
    let mut builder = stack.producer();
    for shard in [1, 2] {
        let dsn = stack.postgres(shard).create_database(&format!("fresh_{tag}")).await?;
        let variable = format!("PG_SHARD{shard}_DSN");
        builder = builder.env(&variable, &dsn);
        environment.push((variable, dsn));
    }
    let producer = builder.start().await?;
    let because = "run orderflow-provision";
    turned_away(&producer, &[("shard1", because), ("shard2", because)], &["alice", "zara"]).await?;

    provision(folder::for_test_process()?, environment).await?;
    becomes_ready_and_serves(&producer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_too_old_is_served_once_it_is_migrated() -> Result<()> {
    let stack = Stack::shared().await?;
    let mut shard1 = stack.shard(1).await?;
    sqlx::query("UPDATE orderflow_meta SET schema_version = 0").execute(&mut shard1).await?;
    let producer = stack.producer().start().await?;
    turned_away(&producer, &[("shard1", "its schema has version 0")], &["alice"]).await?;
    dependencies_up(&producer, &["shard2"]).await?;
    let reply = Api::new(&producer)?.place("zara", None).await?;
    ensure!(reply.status == StatusCode::CREATED, "the other shard's users suffer: {reply:?}");

    sqlx::query("UPDATE orderflow_meta SET schema_version = 4").execute(&mut shard1).await?;
    becomes_ready_and_serves(&producer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_producer_notices_that_its_database_was_replaced() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, _) = serving(&stack).await?;
    let mut shard1 = stack.shard(1).await?;
    sqlx::query("UPDATE orderflow_meta SET shard_map = 'shard1=A-Z'").execute(&mut shard1).await?;
    turned_away(&producer, &[("shard1", "shard1=A-Z")], &["alice"]).await?;

    sqlx::query("UPDATE orderflow_meta SET shard_map = 'shard1=A-M,shard2=N-Z'").execute(&mut shard1).await?;
    becomes_ready_and_serves(&producer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_databases_are_refused_until_they_are_corrected() -> Result<()> {
    const BECOME: &str = "UPDATE orderflow_meta SET (shard_name, shard_index) = ";
    let stack = Stack::shared().await?;
    let swapped = stack.producer().env("PG_SHARD1_DSN", stack.dsn(2)).env("PG_SHARD2_DSN", stack.dsn(1));
    let producer = swapped.start().await?;
    let because = "is the DSN of another shard given?";
    turned_away(&producer, &[("shard1", because), ("shard2", because)], &["alice", "zara"]).await?;
    // A list with orders of the wrong shard, or an order found there, would be wrong as well.
    Api::new(&producer)?.get("/api/orders").await?.expect_problem(503, "shard-unavailable")?;

    for (shard, values, ranges) in [(1, "('shard2', 1)", "0,2"), (2, "('shard1', 0)", "1")] {
        let gate = format!("UPDATE orderflow_gate SET owned = '{{{ranges}}}'");
        let statement = AssertSqlSafe(format!("{BECOME}{values}; {gate}"));
        sqlx::raw_sql(statement).execute(&mut stack.shard(shard).await?).await?;
    }
    becomes_ready_and_serves(&producer).await
}

/// A relay that published another shard's events would record its progress where the right relay never reads it, and a
/// receipt would name the wrong shard.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_work_in_a_swapped_database_is_left_alone() -> Result<()> {
    let stack = Stack::shared().await?;
    let nowhere = format!("127.0.0.1:{}", port::free()?);
    let cut_off = stack.producer().env("S3_ENDPOINT", format!("http://{nowhere}")).env("KAFKA_BROKERS", nowhere);
    let cut_off = cut_off.start().await?;
    dependencies_up(&cut_off, &["shard1", "shard2"]).await?;
    let api = Api::new(&cut_off)?;
    let acked = [api.place("alice", None).await?.acked(0)?, api.place("zara", None).await?.acked(0)?];
    cut_off.stop().await?;

    let swapped = stack.producer().env("PG_SHARD1_DSN", stack.dsn(2)).env("PG_SHARD2_DSN", stack.dsn(1));
    let swapped = swapped.start().await?;
    let because = "is the DSN of another shard given?";
    turned_away(&swapped, &[("shard1", because), ("shard2", because)], &["alice", "zara"]).await?;
    dependencies_up(&swapped, &["kafka", "s3"]).await?;
    swapped.stop().await?;
    for shard in [1, 2] {
        let mut connection = stack.shard(shard).await?;
        let waiting: (i64, i64) =
            sqlx::query_as("SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM receipt_jobs)")
                .fetch_one(&mut connection)
                .await?;
        assert_eq!(waiting, (1, 1), "events and receipts that wait in the database of shard {shard}");
    }

    let (_producer, api) = serving(&stack).await?;
    for order in acked {
        api.receipt_stored(&order.id).await?;
        let receipt = api.receipt(&order.id).await?.text;
        assert!(receipt.contains(&format!("Shard:      {} (", order.shard)), "{receipt}");
    }
    Ok(())
}

/// Makes a database read-only, as after a failover to a replica. Existing sessions end with the settings they started
/// with.
async fn set_read_only(stack: &Stack, shard: usize, read_only: bool) -> Result<()> {
    let database = stack.database();
    let statement = format!(
        "ALTER DATABASE \"{database}\" SET default_transaction_read_only = {read_only}; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
    );
    let mut connection = stack.shard(shard).await?;
    // The session that changes it back is read-only, too.
    sqlx::raw_sql("SET default_transaction_read_only = false").execute(&mut connection).await?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.map(drop).context("set read-only")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_down_for_orders_and_still_read() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let stored = api.place("alice", None).await?.acked(0)?;
    set_read_only(&stack, 1, true).await?;

    let address = api.url.trim_start_matches("http://").to_owned();
    let load = Load::start(&Plan { address, rate: 200, connections: 8, duration: PATIENCE }, Orders::new(26));
    let shard1 = async || anyhow::Ok(readiness(&producer).await?.json()["dependencies"]["shard1"].clone());
    eventually("/readyz to report that shard 1 is down", PATIENCE, async || {
        let state = shard1().await?;
        ensure!(
            state["status"] == "down" && state["reason"].as_str().is_some_and(|it| it.contains("read-only")),
            "{state}"
        );
        Ok(())
    })
    .await?;
    // Connections are available again soon; that alone does not make the shard up.
    for _ in 0..100 {
        let state = shard1().await?;
        ensure!(state["status"] == "down", "{state}");
    }
    api.place("alice", None).await?.expect_problem(503, "not-accepted")?;
    api.order(&stored.id).await?;
    drop(load);

    set_read_only(&stack, 1, false).await?;
    becomes_ready_and_serves(&producer).await
}
