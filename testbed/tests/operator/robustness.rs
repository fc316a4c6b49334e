//! The operator killed, frozen, replaced and cut off, and a resource that cannot be decoded.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::coordination::v1::Lease, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use orderflow_testbed::{Kubernetes, Operator, Service, Stack, eventually, folder, operator, wait::PATIENCE};
use serde_json::{Value, json};

use crate::support::{NAME, SECOND, World, metrics, reconciles};

async fn leader(world: &World) -> Result<String> {
    let lease = world.api::<Lease>().get("orderflow-operator").await?;
    Ok(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
}

async fn led_by(world: &World, operator: &Operator) -> Result<()> {
    eventually("the operator to lead", PATIENCE, async || {
        let leader = leader(world).await?;
        ensure!(leader == operator.name(), "{leader} leads");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_after_each_write_still_finishes() -> Result<()> {
    let world = World::new().await?;
    let _kubelet = world.kubelet();
    let operator = world.operator().await?;
    world.create(world.orderflow_with(&json!({ "spec": { "deletionPolicy": "Delete" } }))).await?;
    // Writes that a new process only repeats, because it remembers nothing, are no progress: killed at each of them, it
    // would never finish.
    let (mut kills, mut seen) = (0, HashSet::new());
    loop {
        let wrote_or_ready = eventually("a write", PATIENCE, async || {
            if world.writes()?.iter().any(|write| !seen.contains(write)) {
                return Ok(true);
            }
            let ready = world.condition("Ready").await?;
            ensure!(ready["status"] == "True", "{ready}");
            anyhow::Ok(false)
        });
        if !wrote_or_ready.await? {
            break;
        }
        operator.kill();
        kills += 1;
        seen.extend(world.writes()?);
        operator.start_again().await?;
    }
    // The number depends on how many writes happen between two reads of the log.
    println!("killed {kills} times");
    ensure!(kills > 1, "it was killed only {kills} times");
    world.settled(&operator).await?;
    world.wait_for("Ready", "True", "Available").await?;

    // The same for the deletion.
    world.orderflows().delete(NAME, &kube::api::DeleteParams::default()).await?;
    for _ in 0..3 {
        operator.kill();
        operator.start_again().await?;
    }
    world.is_gone(NAME).await?;
    ensure!(world.stack.s3().head_bucket().bucket(world.bucket()).send().await.is_err(), "the bucket still exists");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_lost_the_lease_ends() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    led_by(&world, &operator).await?;
    let thief = json!({ "spec": { "holderIdentity": "another" } });
    let leases = world.api::<Lease>();
    leases.patch("orderflow-operator", &PatchParams::default(), &Patch::Merge(thief)).await?;
    let status = operator.process().wait_for_exit(PATIENCE).await?;
    ensure!(!status.success(), "{status}");
    ensure!(operator.process().log_since_start().contains("was taken by another"), "it does not log the reason");
    ensure!(leader(&world).await? == "another", "it wrote the Lease of another operator");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_operator_takes_over_from_one_that_stops_is_killed_or_is_frozen() -> Result<()> {
    let world = World::new().await?;
    let first = world.operator().await?;
    led_by(&world, &first).await?;
    let second = world.operator().await?;

    first.stop().await?;
    ensure!(first.process().log_since_start().contains("released the Lease"), "it kept the Lease");
    led_by(&world, &second).await?;

    let third = world.operator().await?;
    second.kill();
    led_by(&world, &third).await?;

    let fourth = world.operator().await?;
    third.pause();
    led_by(&world, &fourth).await?;
    third.resume();
    let status = third.process().wait_for_exit(PATIENCE).await?;
    ensure!(!status.success(), "the frozen operator goes on: {status}");

    world.create(world.orderflow()).await?;
    world.deployments_exist().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_cannot_be_read_stops_no_other() -> Result<()> {
    // A control plane of its own, because a definition applies to a whole cluster: this one accepts everything, like
    // that of an older or newer version.
    let kubernetes: &'static Kubernetes =
        Box::leak(Box::new(Kubernetes::start(folder::for_test_process()?, "loose").await?));
    let mut loose: Value =
        serde_json::to_value(serde_saphyr::from_str::<CustomResourceDefinition>(operator::DEFINITION)?)?;
    loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let definitions: Api<CustomResourceDefinition> = Api::all(kubernetes.client()?);
    let parameters = PatchParams::apply("test").force();
    definitions.patch("orderflows.orderflow.dev", &parameters, &Patch::Apply(&loose)).await?;

    let world = World::on(kubernetes, Stack::shared().await?).await?;
    eventually("the definition to be served", PATIENCE, async || {
        world
            .create(json!({
                "apiVersion": "orderflow.dev/v1alpha1", "kind": "OrderFlow",
                "metadata": { "name": "strange" }, "spec": { "shards": "two" },
            }))
            .await
    })
    .await?;
    let operator = world.operator().await?;
    let mut orderflow = world.orderflow();
    // The default that the definition would fill in.
    orderflow["spec"]["networkPolicy"] = json!({ "enabled": true });
    world.create(orderflow).await?;
    world.deployments_exist().await?;
    world.wait_for_named("strange", "Ready", "False", "Undecodable").await?;

    // Reported once, however often it is reconciled.
    for _ in 0..3 {
        let before = reconciles(&operator).await?;
        let touched = json!({ "metadata": { "annotations": { "test/reconcile": before.to_string() } } });
        world.patch_named("strange", touched).await?;
        eventually("another reconcile", PATIENCE, async || {
            ensure!(reconciles(&operator).await? > before, "no reconcile");
            Ok(())
        })
        .await?;
    }
    let events = world.events().await?;
    let warnings: Vec<_> =
        events.iter().filter(|(kind, reason, _)| kind == "Warning" && reason == "Undecodable").collect();
    ensure!(warnings.len() == 1, "{events:?}");
    kubernetes.api_server().kill();
    kubernetes.controller_manager().kill();
    kubernetes.etcd().kill();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconcile_that_panics_affects_its_resource_alone() -> Result<()> {
    let world = World::new().await?;
    let panics = format!("operator::reconcile=return({}/{NAME})", world.namespace);
    let operator = world.operator_with(&[("FAILPOINTS", &panics)]).await?;
    let _kubelet = world.kubelet();
    world.create(world.orderflow()).await?;
    let ready = world.wait_for("Ready", "False", "InternalError").await?;
    ensure!(ready["message"].as_str().is_some_and(|message| message.contains("its log has a line")), "{ready}");
    world.create(world.second().await?).await?;
    world.wait_for_named(SECOND, "Ready", "True", "Available").await?;
    // The operator retries with backoff, in the same process.
    eventually("a retry", PATIENCE, async || {
        let metrics = metrics(&operator).await?;
        let count = metrics.lines().find_map(|line| line.strip_prefix("orderflow_operator_reconcile_panics_total "));
        ensure!(count.is_some_and(|count| count.parse().is_ok_and(|count: u64| count > 1)), "{count:?}");
        Ok(())
    })
    .await?;
    ensure!(operator.process().is_running(), "{}", operator.process().log_since_start());
    let log = operator.process().log_since_start();
    ensure!(log.contains(r#""message":"panicked""#) && log.contains("orderflow_operator::reconcile"), "{log}");
    let events = world.events().await?;
    let warnings = events.iter().filter(|(kind, reason, _)| kind == "Warning" && reason == "InternalError").count();
    ensure!(warnings == 1, "{events:#?}");

    // An operator without the fault finishes the resource.
    operator.kill();
    let mended = world.operator().await?;
    world.wait_for("Ready", "True", "Available").await?;
    drop(mended);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_operator_stops_gracefully() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    eventually("the first write", PATIENCE, async || {
        ensure!(!world.writes()?.is_empty(), "nothing");
        Ok(())
    })
    .await?;
    let status = operator.process().terminate(Duration::from_secs(30)).await?;
    ensure!(status.success(), "{status}");
    let lease = world.api::<Lease>().get("orderflow-operator").await?;
    let holder = lease.spec.context("a Lease has a spec")?.holder_identity;
    ensure!(holder.is_none_or(|holder| holder.is_empty()), "the Lease was not given back");
    Ok(())
}
