//! Addresses of databases, brokers and S3 to which the operator does not connect. Anyone who writes a spec would
//! otherwise reach through the operator what only it can reach.

use anyhow::{Result, ensure};
use orderflow_testbed::{Service, postgres, wait::PATIENCE};
use serde_json::{Value, json};

use crate::support::World;

/// Loopback is refused unless a flag allows it.
#[tokio::test(flavor = "multi_thread")]
async fn loopback_addresses_are_refused_before_anything_is_connected() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator_with(&[("ALLOW_LOOPBACK_BACKENDS", "false")]).await?;
    world.create(world.orderflow()).await?;
    require_refused(&world, "ShardsReady", "SecretInvalid", "its host is on loopback").await?;
    require_refused(&world, "BucketReady", "SpecInvalid", "127.0.0.1").await?;
    require_refused(&world, "TopicReady", "SpecInvalid", "127.0.0.1").await?;

    world
        .patch(json!({ "spec": {
            "bucket": { "endpoint": world.stack.object_store().endpoint().replace("127.0.0.1", "localhost") },
            "topic": { "bootstrapServers": format!("kafka.invalid:9092,localhost:{}", world.stack.kafka().port()) },
        }}))
        .await?;
    require_refused(&world, "BucketReady", "SpecInvalid", "localhost").await?;
    require_refused(&world, "TopicReady", "SpecInvalid", "localhost").await?;
    // The resolver accepts a form that parsers of addresses do not.
    let short = |shard| world.dsn(shard).replace("127.0.0.1", "127.1");
    world.put_secret("postgres-shard1", &[("dsn", &short(1))]).await?;
    world.put_secret("postgres-shard2", &[("dsn", &short(2))]).await?;
    world.settled(&operator).await?;
    let message = require_refused(&world, "ShardsReady", "SecretInvalid", "its host is on loopback").await?;
    // A Secret's value must not be shown, and the host is part of it.
    ensure!(!message.contains("127"), "{message}");

    require_untouched(&world).await?;
    let log = operator.process().log_since_start();
    ensure!(!log.contains("orderpass"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn link_local_addresses_and_the_api_server_are_refused() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let api_server = world.kubernetes.url().replace("https://", "");
    let dsn = |host: &str| format!("postgres://orderuser:orderpass@{host}/orders");
    world.put_secret("postgres-shard1", &[("dsn", &dsn("169.254.169.254"))]).await?;
    world.put_secret("postgres-shard2", &[("dsn", &dsn(&api_server))]).await?;
    world
        .create(world.orderflow_with(&json!({ "spec": {
            "bucket": { "endpoint": "http://169.254.169.254" },
            "topic": { "bootstrapServers": api_server },
        }})))
        .await?;
    let message = require_refused(&world, "ShardsReady", "SecretInvalid", "its host is link-local").await?;
    ensure!(message.contains("its host is the Kubernetes API server") && !message.contains("orderpass"), "{message}");
    require_refused(&world, "BucketReady", "SpecInvalid", "169.254.169.254").await?;
    require_refused(&world, "TopicReady", "SpecInvalid", "is the Kubernetes API server").await?;

    world
        .patch(json!({ "spec": {
            "bucket": { "endpoint": "https://kubernetes.default.svc" },
            "topic": { "bootstrapServers": "169.254.169.254:9092" },
        }}))
        .await?;
    world.put_secret("postgres-shard1", &[("dsn", &dsn("[fe80::1]"))]).await?;
    require_refused(&world, "BucketReady", "SpecInvalid", "kubernetes.default.svc").await?;
    require_refused(&world, "TopicReady", "SpecInvalid", "169.254.169.254").await?;
    world.settled(&operator).await?;
    require_refused(&world, "ShardsReady", "SecretInvalid", "its host is link-local").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dsn_that_names_files_of_the_operators_container_is_refused() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    let base = world.dsn(2).to_owned();
    let with = |parameters: &str| format!("{base}{}{parameters}", if base.contains('?') { '&' } else { '?' });
    world.put_secret("postgres-shard2", &[("dsn", &with("sslcert=/etc/hostname"))]).await?;
    world.create(world.orderflow()).await?;
    for (parameters, name) in [
        ("sslcert=/etc/hostname", "sslcert"),
        ("sslmode=verify-ca&sslrootcert=/etc/hostname", "sslrootcert"),
        ("passfile=/etc/hostname", "passfile"),
        ("host=%2Fvar%2Frun%2Fpostgresql", "its host is a socket"),
    ] {
        world.put_secret("postgres-shard2", &[("dsn", &with(parameters))]).await?;
        let message = require_refused(&world, "ShardsReady", "SecretInvalid", name).await?;
        ensure!(
            message.contains("postgres-shard2") && !message.contains("/etc") && !message.contains("/var"),
            "{message}"
        );
    }
    world.put_secret("postgres-shard2", &[("dsn", &base)]).await?;
    world.wait_for("ShardsReady", "True", "Provisioned").await?;
    Ok(())
}

/// Waits until the condition is false with that reason and names `what`, and returns its message.
async fn require_refused(world: &World, kind: &str, reason: &str, what: &str) -> Result<String> {
    let found = |condition: &Value| condition["message"].as_str().is_some_and(|message| message.contains(what));
    let condition = orderflow_testbed::eventually(kind, PATIENCE, async || {
        let condition = world.condition(kind).await?;
        let refused = condition["status"] == "False" && condition["reason"] == reason && found(&condition);
        ensure!(refused, "{condition}");
        Ok(condition)
    })
    .await?;
    Ok(condition["message"].as_str().unwrap_or_default().to_owned())
}

/// Checks that no table, bucket or Deployment was created.
async fn require_untouched(world: &World) -> Result<()> {
    for shard in [1, 2] {
        let mut connection = postgres::connect(world.dsn(shard)).await?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            .fetch_one(&mut connection)
            .await?;
        ensure!(tables == 0, "{tables} tables");
    }
    ensure!(world.stack.s3().head_bucket().bucket(world.bucket()).send().await.is_err(), "the bucket was made");
    let writes = world.writes_to_children()?;
    ensure!(writes.iter().all(|write| write.starts_with("create secrets/")), "{writes:?}");
    Ok(())
}
