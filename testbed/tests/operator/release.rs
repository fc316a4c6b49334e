//! `release`, the operator's last command before its chart is removed. Resources with `deletionPolicy: Delete` must not
//! wait for an operator that never returns, and their data is not touched.

use anyhow::{Result, ensure};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use orderflow_testbed::{
    Isolation, Kubernetes, Operator, Service, eventually, folder, operator, postgres, wait::PATIENCE,
};
use serde_json::{Value, json};

use crate::support::{NAME, World, metrics};

const FINALIZER: &str = "orderflow.dev/cleanup";

/// Runs `release` as the chart's hook does: with the operator's own account and environment. Returns whether it
/// succeeded, and what it printed.
async fn release(world: &World, environment: &[(&str, &str)]) -> Result<(bool, String)> {
    let mut all = world.operator_environment();
    all.extend(environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let name = format!("release-{}", world.namespace);
    operator::command(folder::for_test_process()?, &name, &world.kubeconfig, all, "release").await
}

fn deleting(world: &World) -> Value {
    world.orderflow_with(&json!({ "spec": { "deletionPolicy": "Delete" } }))
}

async fn finalizers(world: &World) -> Result<Vec<String>> {
    Ok(world.orderflows().get(NAME).await?.finalizers().to_vec())
}

async fn holder(world: &World) -> Result<String> {
    let lease = world.api::<Lease>().get("orderflow-operator").await?;
    Ok(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
}

/// Returns which data outside the cluster exists that a deletion would remove.
async fn data(world: &World) -> Result<[bool; 4]> {
    let mut there = [false; 4];
    for shard in [1, 2] {
        let mut connection = postgres::connect(world.dsn(shard)).await?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE tablename = 'orders'")
            .fetch_one(&mut connection)
            .await?;
        there[shard - 1] = tables == 1;
    }
    there[2] = world.stack.s3().head_bucket().bucket(world.bucket()).send().await.is_ok();
    there[3] = world.stack.read_topic(&world.topic(), Isolation::ReadCommitted).await.is_ok();
    Ok(there)
}

async fn everything_is_made(world: &World) -> Result<()> {
    world.deployments_exist().await?;
    for condition in ["ShardsReady", "BucketReady", "TopicReady"] {
        world.wait_for(condition, "True", "Provisioned").await?;
    }
    ensure!(finalizers(world).await? == [FINALIZER], "no finalizer");
    ensure!(data(world).await? == [true; 4], "{:?}", data(world).await?);
    Ok(())
}

/// Returns how often the operator's account has listed the resources.
fn lists(world: &World) -> Result<usize> {
    Ok(world.requests()?.iter().filter(|request| request.starts_with("list orderflows/")).count())
}

/// Plays the kubelet, which restarts a container that has ended.
async fn start_again_when_it_ends(operator: &Operator) -> Result<()> {
    operator.process().wait_for_exit(PATIENCE).await?;
    operator.start_again().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_resource_can_be_deleted_without_an_operator_and_keeps_its_data() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(deleting(&world)).await?;
    everything_is_made(&world).await?;

    let (released, restarted) = tokio::join!(release(&world, &[]), start_again_when_it_ends(&operator));
    let (ok, text) = released?;
    restarted?;
    ensure!(ok && text.contains(&format!("released {}/{NAME}", world.namespace)), "{text}");

    // The operator runs again, as a pod does until its Deployment is gone; it may only wait.
    ensure!(metrics(&operator).await?.contains("\norderflow_operator_leader 0\n"), "it leads");
    operator.stop().await?;
    ensure!(holder(&world).await?.starts_with("release-"), "{} has the Lease", holder(&world).await?);
    ensure!(finalizers(&world).await?.is_empty(), "{:?}", finalizers(&world).await?);

    world.orderflows().delete(NAME, &DeleteParams::default()).await?;
    world.is_gone(NAME).await?;
    ensure!(data(&world).await? == [true; 4], "{:?}", data(&world).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_in_progress_ends_first() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    world.create(deleting(&world)).await?;
    everything_is_made(&world).await?;
    // The data is removed only after the pods have ended, and this one takes its time.
    let pods = world.api::<Pod>();
    let pod = eventually("a pod", PATIENCE, async || {
        let pod = pods.list(&ListParams::default()).await?.items.pop();
        pod.ok_or_else(|| anyhow::anyhow!("no pod"))
    })
    .await?;
    let hold = |finalizers: Value| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
    pods.patch(&pod.name_any(), &PatchParams::default(), &hold(json!(["test/hold"]))).await?;
    world.orderflows().delete(NAME, &DeleteParams::default()).await?;

    let before = lists(&world)?;
    let let_go = async {
        eventually("it to wait", PATIENCE, async || {
            ensure!(lists(&world)? > before + 1, "not two lists yet");
            Ok(())
        })
        .await?;
        ensure!(finalizers(&world).await? == [FINALIZER], "it did not wait");
        pods.patch(&pod.name_any(), &PatchParams::default(), &hold(json!(null))).await?;
        anyhow::Ok(())
    };
    let (released, let_go) = tokio::join!(release(&world, &[]), let_go);
    let_go?;
    let (ok, text) = released?;
    ensure!(ok && !text.contains("released"), "{text}");
    ensure!(text.contains(&format!("the deletion of {}/{NAME}", world.namespace)), "{text}");
    world.is_gone(NAME).await?;
    ensure!(data(&world).await? == [false; 4], "{:?}", data(&world).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_a_deletion_is_bounded() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(deleting(&world)).await?;
    everything_is_made(&world).await?;
    operator.kill();
    world.orderflows().delete(NAME, &DeleteParams::default()).await?;

    let (ok, text) = release(&world, &[("WAIT_SECONDS", "1")]).await?;
    ensure!(ok && text.contains("data that were not removed yet stay"), "{text}");
    world.is_gone(NAME).await?;
    ensure!(data(&world).await? == [true; 4], "{:?}", data(&world).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn release_ends_at_once_without_deletions() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    let (ok, text) = release(&world, &[]).await?;
    ensure!(ok && !text.contains("waiting") && text.contains("no OrderFlow has a finalizer"), "{text}");
    operator.process().wait_for_exit(PATIENCE).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_namespace_is_no_failure() -> Result<()> {
    let world = World::new().await?;
    let (ok, text) = release(&world, &[("WATCH_NAMESPACE", &format!("{}-gone", world.namespace))]).await?;
    ensure!(ok && text.contains("assuming that the namespace was removed"), "{text}");
    // Its own namespace exists, so a missing permission there is a failure.
    let (ok, text) = release(&world, &[("ALL_NAMESPACES", "true")]).await?;
    ensure!(!ok && text.contains("list the OrderFlows"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_definition_is_no_failure() -> Result<()> {
    let folder = folder::for_test_process()?;
    let kubernetes = Kubernetes::start(folder, "kubernetes-to-release-from").await?;
    let environment = vec![("POD_NAMESPACE".to_owned(), "default".to_owned())];
    let (ok, text) =
        operator::command(folder, "release-without-definition", kubernetes.admin_kubeconfig(), environment, "release")
            .await?;
    ensure!(ok && text.contains("no OrderFlow has a finalizer"), "{text}");
    Ok(())
}
