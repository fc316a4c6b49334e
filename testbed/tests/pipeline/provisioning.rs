//! `orderflow-provision`: safe to run again and by several at once, and never on what is another's.

use anyhow::{Result, ensure};
use futures_util::future::{join_all, try_join_all};
use orderflow_testbed::{Stack, folder, product::Environment, provision};
use sqlx::Row;
use uuid::Uuid;

/// The environment of a new OrderFlow on the stack's services, of which nothing is there yet but two empty databases.
async fn fresh(stack: &Stack) -> Result<Environment> {
    let tag = Uuid::now_v7().simple().to_string().split_off(24);
    let mut environment = stack.env();
    for (name, value) in &mut environment {
        match name.as_str() {
            "PG_SHARD1_DSN" => *value = stack.postgres(1).create_database(&format!("fresh_{tag}")).await?,
            "PG_SHARD2_DSN" => *value = stack.postgres(2).create_database(&format!("fresh_{tag}")).await?,
            "KAFKA_TOPIC" | "S3_BUCKET" => *value = format!("fresh-{tag}"),
            _ => {}
        }
    }
    environment.push(("OWNER".to_owned(), format!("test/{tag}")));
    Ok(environment)
}

fn with(environment: &Environment, name: &str, value: &str) -> Environment {
    let mut environment = environment.clone();
    environment.retain(|(other, _)| other != name);
    environment.push((name.to_owned(), value.to_owned()));
    environment
}

fn value<'env>(environment: &'env Environment, name: &str) -> &'env str {
    environment.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
}

/// Owner and shard of a database, and the transaction that wrote them.
async fn meta(dsn: &str) -> Result<(String, String, String)> {
    let mut connection = orderflow_testbed::postgres::connect(dsn).await?;
    let row =
        sqlx::query("SELECT owner, shard_name, xmin::text FROM orderflow_meta").fetch_one(&mut connection).await?;
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn several_runs_at_once_and_again_all_succeed() -> Result<()> {
    let stack = Stack::shared().await?;
    let (environment, folder) = (fresh(&stack).await?, folder::of_this_test_process()?);
    try_join_all((0..4).map(|_| provision(folder, environment.clone()))).await?;
    let before = meta(value(&environment, "PG_SHARD1_DSN")).await?;
    ensure!(before.1 == "shard1", "{before:?}");
    provision(folder, environment.clone()).await?;
    ensure!(meta(value(&environment, "PG_SHARD1_DSN")).await? == before, "a second run wrote something");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_anothers_or_another_shard_is_refused_and_left_alone() -> Result<()> {
    let stack = Stack::shared().await?;
    let (environment, folder) = (fresh(&stack).await?, folder::of_this_test_process()?);
    provision(folder, environment.clone()).await?;
    let dsns = ["PG_SHARD1_DSN", "PG_SHARD2_DSN"].map(|name| value(&environment, name).to_owned());
    let before = join_all(dsns.iter().map(|dsn| meta(dsn))).await;

    let swapped = with(&with(&environment, "PG_SHARD1_DSN", &dsns[1]), "PG_SHARD2_DSN", &dsns[0]);
    for (what, wrong) in
        [("swapped databases", swapped), ("another owner", with(&environment, "OWNER", "test/another"))]
    {
        let refused = provision(folder, wrong).await;
        let message = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(message.contains("FAILED") && !message.contains("orderpass"), "{what}: {message:?}");
    }
    let after = join_all(dsns.iter().map(|dsn| meta(dsn))).await;
    for (before, after) in before.into_iter().zip(after) {
        ensure!(before? == after?, "a refused run wrote something");
    }
    Ok(())
}
