//! Postgres over TLS only and Kafka over TLS with a log-in only, both with certificates that a private authority has
//! signed: the pipeline works on them, and says what is wrong when it cannot.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Stack, kafka, postgres};

use crate::support::{PATIENCE, expect_each_exactly_once, serving};

#[tokio::test(flavor = "multi_thread")]
async fn orders_go_all_the_way_over_tls_and_log_ins() -> Result<()> {
    let stack = Stack::secured().await?;
    let (producer, api) = serving(&stack).await?;
    let consumer = stack.consumer().start().await?;
    consumer.ready(PATIENCE).await?;

    let orders = api.place_many(40).await?;
    expect_each_exactly_once(&stack, &orders).await?;
    every_session_of_postgres_is_encrypted(&stack).await?;
    drop(producer);
    kafka_takes_nobody_without_tls(&stack).await
}

async fn every_session_of_postgres_is_encrypted(stack: &Stack) -> Result<()> {
    const SESSIONS: &str = "SELECT count(*), count(*) FILTER (WHERE ssl AND version >= 'TLSv1.2') \
                            FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
                            WHERE datname = current_database() AND application_name = 'orderflow-producer'";
    for shard in [1, 2] {
        let (sessions, encrypted): (i64, i64) =
            sqlx::query_as(SESSIONS).fetch_one(&mut stack.shard(shard).await?).await?;
        ensure!(sessions > 0 && encrypted == sessions, "shard {shard}: {encrypted} of {sessions}");
        let plain = format!("{}?sslmode=disable", stack.dsn(shard));
        let refused = postgres::connect(&plain).await.err().context("a connection without TLS was taken")?;
        ensure!(format!("{refused:#}").contains("no encryption"), "{refused:#}");
    }
    Ok(())
}

async fn kafka_takes_nobody_without_tls(stack: &Stack) -> Result<()> {
    kafka::probe(&stack.kafka().bootstrap()).await.err().context("a client without TLS was answered")?;
    Ok(())
}
