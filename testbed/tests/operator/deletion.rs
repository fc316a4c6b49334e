//! The deletion of a resource: its children, and its data outside the cluster.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::primitives::ByteStream;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Secret},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use orderflow_testbed::{Isolation, Service, eventually, postgres, wait::PATIENCE};
use serde_json::json;
use sqlx::Row;

use crate::support::{NAME, World, reconciles};

const RECEIPT: &str = "receipts/alice/01890000-0000-7000-8000-000000000001.txt";

/// Another owner's objects in the bucket, some where the receipts are.
const THEIRS: [&str; 3] = ["other/thing", "receipts/2024/scan.pdf", "receipts/alice/1.txt"];

async fn delete(world: &World) -> Result<()> {
    world.orderflows().delete(NAME, &DeleteParams::default()).await.context("delete the OrderFlow")?;
    Ok(())
}

/// Returns the names of all tables in a shard's database.
async fn tables(world: &World, shard: usize) -> Result<Vec<String>> {
    let mut connection = postgres::connect(world.dsn(shard)).await?;
    let rows = sqlx::query("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        .fetch_all(&mut connection)
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn bucket_exists(world: &World) -> bool {
    world.stack.s3().head_bucket().bucket(world.bucket()).send().await.is_ok()
}

/// Returns whether the topic exists: reading a missing one is an error.
async fn topics_exist(world: &World) -> bool {
    world.stack.read_topic(&world.topic(), Isolation::ReadCommitted).await.is_ok()
}

async fn put(world: &World, key: &str) -> Result<()> {
    let body = ByteStream::from_static(b"paid");
    world.stack.s3().put_object().bucket(world.bucket()).key(key).body(body).send().await?;
    Ok(())
}

/// Returns the resource's one Warning about what it left behind.
async fn left_behind(world: &World) -> Result<String> {
    let events = world.events().await?;
    let warnings: Vec<_> = events.iter().filter(|(_, reason, _)| reason == "CleanupIncomplete").collect();
    ensure!(warnings.len() == 1 && warnings[0].0 == "Warning", "{events:?}");
    Ok(warnings[0].2.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn retain_is_the_default_and_leaves_everything_outside_the_cluster() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.settled(&operator).await?;
    ensure!(
        world.orderflows().get(NAME).await?.finalizers().is_empty(),
        "a finalizer would keep it without an operator"
    );
    let before = (tables(&world, 1).await?, tables(&world, 2).await?);

    operator.stop().await?;
    delete(&world).await?;
    world.is_gone(NAME).await?;
    eventually("the children to be collected", PATIENCE, async || {
        let deployments = world.api::<Deployment>().list(&ListParams::default()).await?;
        ensure!(deployments.items.is_empty(), "{} Deployments", deployments.items.len());
        Ok(())
    })
    .await?;
    ensure!((tables(&world, 1).await?, tables(&world, 2).await?) == before && before.0.len() > 4, "{before:?}");
    ensure!(bucket_exists(&world).await && topics_exist(&world).await, "the bucket or the topics are gone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_stops_the_pods_and_removes_the_resources_data() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    let _kubelet = world.kubelet();
    for shard in [1, 2] {
        let mut connection = postgres::connect(world.dsn(shard)).await?;
        sqlx::query("CREATE TABLE somebodys (id int)").execute(&mut connection).await?;
    }
    world.create(world.orderflow_with(&json!({ "spec": { "deletionPolicy": "Delete" } }))).await?;
    world.wait_for("Ready", "True", "Available").await?;
    ensure!(world.orderflows().get(NAME).await?.finalizers() == ["orderflow.dev/cleanup"], "no finalizer");
    put(&world, RECEIPT).await?;

    delete(&world).await?;
    world.is_gone(NAME).await?;
    let pods = world.api::<Pod>().list(&ListParams::default()).await?;
    ensure!(pods.items.is_empty(), "{} pods still existed", pods.items.len());
    for shard in [1, 2] {
        ensure!(tables(&world, shard).await? == ["somebodys"], "{:?}", tables(&world, shard).await?);
    }
    ensure!(!bucket_exists(&world).await && !topics_exist(&world).await, "the bucket or the topics still exist");
    let events = world.events().await?;
    ensure!(events.iter().all(|(_, reason, _)| reason != "CleanupIncomplete"), "{events:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_with_other_objects_is_kept() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    world.create(world.orderflow_with(&json!({ "spec": { "deletionPolicy": "Delete" } }))).await?;
    world.wait_for("BucketReady", "True", "Provisioned").await?;
    put(&world, RECEIPT).await?;
    for theirs in THEIRS {
        put(&world, theirs).await?;
    }
    delete(&world).await?;
    world.is_gone(NAME).await?;
    let left = world.stack.s3().list_objects_v2().bucket(world.bucket()).send().await?;
    let keys: Vec<_> = left.contents().iter().filter_map(|object| object.key()).collect();
    ensure!(keys == THEIRS, "{keys:?}");
    let left = left_behind(&world).await?;
    ensure!(left.contains("kept, because other objects are in it"), "{left}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_buckets_and_topics_from_before_are_kept() -> Result<()> {
    let world = World::with_localstack().await?;
    let s3 = world.stack.s3();
    s3.create_bucket().bucket(world.bucket()).send().await?;
    world.stack.create_topic(&world.topic(), 6).await?;
    let _operator = world.operator().await?;
    let changes = json!({ "spec": { "deletionPolicy": "Delete", "consumer": { "groupId": "billing" } } });
    world.create(world.orderflow_with(&changes)).await?;
    world.wait_for("BucketReady", "True", "Provisioned").await?;
    world.wait_for("TopicReady", "True", "TopicsDiffer").await?;
    put(&world, RECEIPT).await?;

    delete(&world).await?;
    world.is_gone(NAME).await?;
    ensure!(topics_exist(&world).await && bucket_exists(&world).await, "the topic or the bucket is gone");
    let notifications = format!("{}.notifications", world.topic());
    let made = world.stack.read_topic(&notifications, Isolation::ReadCommitted).await;
    ensure!(made.is_err(), "{notifications} was created by the operator and still exists");
    let left = left_behind(&world).await?;
    for kept in [format!("topic {}: kept", world.topic()), "group billing: kept".to_owned(), "bucket".to_owned()] {
        ensure!(left.contains(&kept), "{kept}: {left}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_another_owner_is_not_removed() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.wait_for("TopicReady", "True", "Provisioned").await?;
    world.deployments_exist().await?;
    let before = tables(&world, 1).await?;
    let second = json!({ "metadata": { "name": "second" }, "spec": { "deletionPolicy": "Delete" } });
    world.create(world.orderflow_with(&second)).await?;
    world.wait_for_named("second", "TopicReady", "False", "OwnedByAnother").await?;

    world.orderflows().delete("second", &DeleteParams::default()).await?;
    world.is_gone("second").await?;
    ensure!(tables(&world, 1).await? == before, "tables were removed");
    ensure!(bucket_exists(&world).await && topics_exist(&world).await, "the bucket or the topics are gone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_does_not_block_the_deletion() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    world.create(world.orderflow_with(&json!({ "spec": { "deletionPolicy": "Delete" } }))).await?;
    world.deployments_exist().await?;
    world.api::<Secret>().delete("postgres-shard2", &DeleteParams::default()).await?;
    world.wait_for("ShardsReady", "False", "SecretMissing").await?;
    delete(&world).await?;
    world.is_gone(NAME).await?;
    let left = left_behind(&world).await?;
    ensure!(left.contains("postgres-shard2") && !left.contains("postgres-shard1"), "{left}");
    ensure!(
        tables(&world, 1).await?.is_empty() && !tables(&world, 2).await?.is_empty(),
        "the first shard's tables stay"
    );
    ensure!(!bucket_exists(&world).await && !topics_exist(&world).await, "the bucket or the topics still exist");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_does_not_block_the_deletion() -> Result<()> {
    let world = World::with_own_services().await?;
    let _operator = world.operator_with(&[("CLEANUP_SECONDS", "5")]).await?;
    world.create(world.orderflow_with(&json!({ "spec": { "deletionPolicy": "Delete" } }))).await?;
    world.deployments_exist().await?;
    world.wait_for("BucketReady", "True", "Provisioned").await?;
    world.stack.kafka().kill();
    world.stack.postgres(2).kill();
    delete(&world).await?;
    world.is_gone(NAME).await?;
    let left = left_behind(&world).await?;
    ensure!(left.contains(&world.topic()) || left.contains("topics"), "{left}");
    ensure!(left.contains("shard2") && !left.contains("shard1"), "{left}");
    ensure!(tables(&world, 1).await?.is_empty() && !bucket_exists(&world).await, "reachable data was not removed");
    Ok(())
}

/// Creates a resource with `deletionPolicy: Delete` and one receipt, after all its data outside the cluster exists.
async fn provisioned(world: &World) -> Result<()> {
    world.create(world.orderflow_with(&json!({ "spec": { "deletionPolicy": "Delete" } }))).await?;
    world.wait_for("ShardsReady", "True", "Provisioned").await?;
    world.wait_for("BucketReady", "True", "Provisioned").await?;
    world.wait_for("TopicReady", "True", "Provisioned").await?;
    put(world, RECEIPT).await
}

async fn receipt_exists(world: &World) -> bool {
    world.stack.s3().head_object().bucket(world.bucket()).key(RECEIPT).send().await.is_ok()
}

/// Points the resource at an S3 that does not answer, or back at the real one (`true`). While S3 is down a deletion
/// removes the topics and then waits, with receipts and tables still in place.
async fn s3_answers(world: &World, answers: bool) -> Result<()> {
    let real = world.stack.object_store().endpoint();
    let endpoint = if answers { real.as_str() } else { "http://127.0.0.1:1" };
    world.patch(json!({ "spec": { "bucket": { "endpoint": endpoint } } })).await
}

async fn is_stuck(world: &World) -> Result<()> {
    eventually("the deletion to wait for S3", PATIENCE, async || {
        let ready = world.condition("Ready").await?;
        let message = ready["message"].as_str().unwrap_or_default();
        ensure!(ready["reason"] == "Deleting" && message.contains("not removed yet: bucket"), "{ready}");
        Ok(())
    })
    .await
}

async fn require_retained_event(world: &World) -> Result<()> {
    let events = world.events().await?;
    let retained: Vec<_> = events.iter().filter(|(_, reason, _)| reason == "Retained").collect();
    ensure!(retained.len() == 1 && retained[0].2.contains("deletionPolicy is Retain"), "{events:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn retain_set_while_no_operator_ran_keeps_everything() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    provisioned(&world).await?;
    let before = (tables(&world, 1).await?, tables(&world, 2).await?);

    operator.stop().await?;
    world.patch(json!({ "spec": { "deletionPolicy": "Retain" } })).await?;
    delete(&world).await?;
    let _operator = world.operator().await?;
    world.is_gone(NAME).await?;
    ensure!((tables(&world, 1).await?, tables(&world, 2).await?) == before && before.0.len() > 4, "{before:?}");
    ensure!(topics_exist(&world).await && receipt_exists(&world).await, "the topics or a receipt are gone");
    require_retained_event(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn retain_stops_a_deletion_in_progress() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    provisioned(&world).await?;
    let before = (tables(&world, 1).await?, tables(&world, 2).await?);
    s3_answers(&world, false).await?;
    delete(&world).await?;
    is_stuck(&world).await?;

    let retain = json!({ "spec": {
        "deletionPolicy": "Retain",
        "bucket": { "endpoint": world.stack.object_store().endpoint() },
    }});
    world.patch(retain).await?;
    world.is_gone(NAME).await?;
    ensure!((tables(&world, 1).await?, tables(&world, 2).await?) == before && before.0.len() > 4, "{before:?}");
    ensure!(receipt_exists(&world).await, "the receipt is gone");
    require_retained_event(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_deletion_waits() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    provisioned(&world).await?;
    let before = (tables(&world, 1).await?, tables(&world, 2).await?);
    s3_answers(&world, false).await?;
    delete(&world).await?;
    is_stuck(&world).await?;

    let paused = |value| json!({ "metadata": { "annotations": { "orderflow.dev/paused": value } } });
    world.patch(paused(json!("true"))).await?;
    world.wait_for("Paused", "True", "PauseRequested").await?;
    s3_answers(&world, true).await?;
    for _ in 0..2 {
        world.force_reconcile(&operator).await?;
    }
    let ready = world.condition("Ready").await?;
    let message = ready["message"].as_str().unwrap_or_default();
    ensure!(ready["reason"] == "Deleting" && message.contains("orderflow.dev/paused"), "{ready}");
    ensure!((tables(&world, 1).await?, tables(&world, 2).await?) == before && before.0.len() > 4, "{before:?}");
    ensure!(receipt_exists(&world).await, "the receipt was removed during the pause");

    world.patch(paused(json!(null))).await?;
    world.is_gone(NAME).await?;
    ensure!(tables(&world, 1).await?.is_empty() && tables(&world, 2).await?.is_empty(), "the tables still exist");
    ensure!(!bucket_exists(&world).await, "the bucket still exists");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_resource_with_retain_is_deleted() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    provisioned(&world).await?;
    operator.stop().await?;
    world.patch(json!({ "metadata": { "annotations": { "orderflow.dev/paused": "true" } } })).await?;
    delete(&world).await?;
    let operator = world.operator().await?;
    world.wait_for("Paused", "True", "PauseRequested").await?;
    let pods = world.deployment("producer").await?.spec.and_then(|spec| spec.replicas);
    ensure!(pods == Some(2), "the pods were stopped during the pause: {pods:?}");
    world.patch(json!({ "spec": { "deletionPolicy": "Retain" } })).await?;
    world.is_gone(NAME).await?;
    ensure!(tables(&world, 1).await?.len() > 4 && receipt_exists(&world).await, "something was removed");
    operator.stop().await
}

/// `CLEANUP_SECONDS` counts from the deletion, not from the start of the operator's process.
#[tokio::test(flavor = "multi_thread")]
async fn short_lived_operators_release_the_resource_in_time() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    provisioned(&world).await?;
    s3_answers(&world, false).await?;
    delete(&world).await?;
    is_stuck(&world).await?;
    operator.stop().await?;
    eventually("the resource to be gone", PATIENCE, async || {
        let operator = world.operator_with(&[("CLEANUP_SECONDS", "10")]).await?;
        eventually("a reconcile of the deletion", PATIENCE, async || {
            let there = world.orderflows().get_opt(NAME).await?.is_some();
            ensure!(!there || reconciles(&operator).await? > 0, "no reconcile");
            Ok(())
        })
        .await?;
        operator.stop().await?;
        ensure!(world.orderflows().get_opt(NAME).await?.is_none(), "it still exists");
        Ok(())
    })
    .await?;
    let left = left_behind(&world).await?;
    ensure!(left.contains("bucket"), "{left}");
    Ok(())
}
