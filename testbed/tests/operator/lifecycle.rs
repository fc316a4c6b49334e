//! The life of a resource: from its creation to all its children, until nothing is left to do.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use orderflow_testbed::postgres;
use serde_json::json;
use sqlx::{AssertSqlSafe, Row};

use crate::support::{NAME, World};

#[tokio::test(flavor = "multi_thread")]
async fn one_resource_creates_all_children_and_then_writes_nothing_more() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    let began = Instant::now();
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    println!("schemas, bucket, topics and Deployments: {:?}", began.elapsed());
    world.wait_for("Ready", "True", "Available").await?;
    println!("ready: {:?}", began.elapsed());

    for shard in [1, 2] {
        let mut connection = postgres::connect(world.dsn(shard)).await?;
        let row = sqlx::query("SELECT owner, shard_name FROM orderflow_meta").fetch_one(&mut connection).await?;
        let (owner, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        ensure!(owner == format!("{}/{NAME}", world.namespace) && name == format!("shard{shard}"), "{owner} {name}");
    }
    let tags = world.stack.s3().get_bucket_tagging().bucket(world.bucket()).send().await?;
    ensure!(tags.tag_set().iter().any(|tag| tag.value() == format!("{}/{NAME}", world.namespace)), "{tags:?}");
    world.stack.read_topic(&world.topic(), orderflow_testbed::Isolation::ReadCommitted).await?;

    let status = world.status(NAME).await?;
    ensure!(status["shardsReady"] == "2/2" && status["observedGeneration"] == 1, "{status}");

    world.settled(&operator).await?;
    let before = world.writes()?.len();
    for _ in 0..3 {
        world.force_reconcile(&operator).await?;
    }
    let writes = world.writes()?;
    ensure!(writes.len() == before, "a settled resource was written to: {:?}", &writes[before..]);
    println!("writes until settled: {before}: {writes:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_conditions_exist_from_the_first_reconcile() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    world
        .create(
            world.orderflow_with(&json!({ "spec": { "bucket": { "credentialsSecretRef": { "name": "absent" } } } })),
        )
        .await?;
    world.wait_for("BucketReady", "False", "SecretMissing").await?;
    let status = world.status(NAME).await?;
    let conditions = status["conditions"].as_array().context("no conditions")?;
    let kinds: Vec<_> = conditions.iter().filter_map(|condition| condition["type"].as_str()).collect();
    ensure!(
        kinds
            == [
                "Ready",
                "ShardsReady",
                "BucketReady",
                "TopicReady",
                "ProducerAvailable",
                "ConsumerAvailable",
                "Paused"
            ],
        "{kinds:?}"
    );
    ensure!(conditions.iter().all(|condition| condition["observedGeneration"] == 1), "{status}");
    Ok(())
}

/// Weaker settings cause a note and no failure, because they work.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_reports_weak_settings_of_the_servers() -> Result<()> {
    let world = World::new().await?;
    let mut connection = postgres::connect(world.dsn(1)).await?;
    let database: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut connection).await?;
    let statement = format!("ALTER DATABASE {database} SET synchronous_commit = off");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
    let _operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    let shards = world.wait_for("ShardsReady", "True", "Provisioned").await?;
    let message = shards["message"].as_str().context("no message")?;
    ensure!(message.contains("(shard1: synchronous_commit is off") && !message.contains("shard2"), "{message}");
    let topics = world.wait_for("TopicReady", "True", "Provisioned").await?;
    let message = topics["message"].as_str().context("no message")?;
    ensure!(message.contains("(one broker has the only copy of each record)"), "{message}");
    let id = world.status(NAME).await?["kafkaClusterId"].clone();
    ensure!(id.as_str().is_some_and(|id| id.len() == 22), "{id}");
    Ok(())
}
