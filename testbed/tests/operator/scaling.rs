//! The number of pods: set in the spec or by an autoscaler. A change from one to the other stops no pod.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use orderflow_testbed::{eventually, wait::PATIENCE};
use serde_json::{Value, json};

use crate::support::{NAME, World};

#[tokio::test(flavor = "multi_thread")]
async fn from_a_number_to_autoscaling_and_back_no_running_pod_is_stopped() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    world.create(world.orderflow_with(&json!({ "spec": { "producer": { "replicas": 3 } } }))).await?;
    expect_condition(&world, "ProducerAvailable", "True", "3 of 3 pods are available").await?;
    let pods = pods_of(&world, "producer").await?;
    ensure!(pods.len() == 3, "{pods:?}");

    world.patch(autoscaling(2, 5)).await?;
    eventually("the number of pods to have another owner", PATIENCE, async || {
        let owners = owners_of_replicas(&world.deployment("producer").await?);
        ensure!(!owners.contains("orderflow-operator"), "{owners:?}");
        Ok(())
    })
    .await?;
    let autoscaler = autoscaler(&world).await?;
    let spec = &autoscaler["spec"];
    ensure!(spec["minReplicas"] == 2 && spec["maxReplicas"] == 5, "{spec}");
    ensure!(spec["scaleTargetRef"]["name"] == "main-producer", "{spec}");
    world.settled(&operator).await?;
    let deployment = world.deployment("producer").await?;
    let owners = owners_of_replicas(&deployment);
    ensure!(owners == BTreeSet::from(["orderflow-operator-autoscaling".to_owned()]), "{owners:?}");
    ensure!(replicas(&deployment) == Some(3), "{deployment:?}");
    ensure!(pods_of(&world, "producer").await? == pods, "pods were stopped");

    // The autoscaler's number stays.
    scale(&world, 5).await?;
    expect_condition(&world, "ProducerAvailable", "True", "5 of 5 pods are available").await?;
    world.settled(&operator).await?;
    let before = world.writes()?.len();
    for _ in 0..3 {
        world.force_reconcile(&operator).await?;
    }
    let writes = world.writes()?;
    ensure!(writes.len() == before, "{:?}", &writes[before..]);
    ensure!(replicas(&world.deployment("producer").await?) == Some(5), "the autoscaler's number was undone");

    world.patch(json!({ "spec": { "producer": { "replicas": 2, "autoscaling": null } } })).await?;
    expect_condition(&world, "ProducerAvailable", "True", "2 of 2 pods are available").await?;
    world.settled(&operator).await?;
    let owners = owners_of_replicas(&world.deployment("producer").await?);
    ensure!(owners == BTreeSet::from(["orderflow-operator".to_owned()]), "{owners:?}");
    let autoscaler = world.objects("HorizontalPodAutoscaler").get_opt("main-producer").await?;
    ensure!(autoscaler.is_none(), "{autoscaler:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn autoscaling_from_the_beginning_starts_with_the_minimum_and_sets_no_number_again() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let mut orderflow = world.orderflow();
    crate::support::merge(&mut orderflow, &autoscaling(3, 6));
    world.create(orderflow).await?;
    let handed = |deployment: &Deployment| !owners_of_replicas(deployment).contains("orderflow-operator");
    let deployment = world.deployment_that("producer", "whose number is the autoscaler's", handed).await?;
    ensure!(replicas(&deployment) == Some(3), "{deployment:?}");
    autoscaler(&world).await?;
    world.settled(&operator).await?;
    ensure!(replicas(&world.deployment("producer").await?) == Some(3), "the number changed");

    // Another change of the Deployment does not change the number.
    scale(&world, 4).await?;
    world.patch(json!({ "spec": { "producer": { "image": "example.com/producer:2" } } })).await?;
    let is_new =
        |deployment: &Deployment| serde_json::to_string(deployment).is_ok_and(|text| text.contains("producer:2"));
    world.deployment_that("producer", "of the new image", is_new).await?;
    world.settled(&operator).await?;
    ensure!(replicas(&world.deployment("producer").await?) == Some(4), "the autoscaler's number was undone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_from_no_pods_to_autoscaling_starts_with_one() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow_with(&json!({ "spec": { "producer": { "replicas": 0 } } }))).await?;
    world.wait_for("ProducerAvailable", "True", "ScaledToZero").await?;
    world.patch(autoscaling(2, 5)).await?;
    // An autoscaler ignores a Deployment without pods; one pod it raises to the minimum.
    world.deployment_that("producer", "with the least pods", |deployment| replicas(deployment) == Some(2)).await?;
    world.settled(&operator).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_without_pods_can_be_ready() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let none = json!({ "spec": { "producer": { "replicas": 0 }, "consumer": { "replicas": 0 } } });
    world.create(world.orderflow_with(&none)).await?;
    world.wait_for("ProducerAvailable", "True", "ScaledToZero").await?;
    world.wait_for("ConsumerAvailable", "True", "ScaledToZero").await?;
    world.wait_for("Ready", "True", "Available").await?;
    world.settled(&operator).await
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_are_limited_to_the_number_of_partitions() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.patch(json!({ "spec": { "consumer": { "replicas": 6 } } })).await?;
    world.deployment_that("consumer", "of 6 pods", |deployment| replicas(deployment) == Some(6)).await?;
    let refused = world.patch(json!({ "spec": { "consumer": { "replicas": 7 } } })).await;
    ensure!(format!("{:?}", refused.as_ref().err()).contains("must not exceed topic.partitions"), "{refused:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_follows_the_pods() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    for component in ["ProducerAvailable", "ConsumerAvailable"] {
        expect_condition(&world, component, "False", "0 of 2 pods are available").await?;
        world.wait_for(component, "False", "Progressing").await?;
    }
    world.wait_for("Ready", "False", "Progressing").await?;

    let kubelet = world.kubelet();
    for component in ["ProducerAvailable", "ConsumerAvailable"] {
        expect_condition(&world, component, "True", "2 of 2 pods are available").await?;
    }
    world.wait_for("Ready", "True", "Available").await?;
    world.settled(&operator).await?;

    drop(kubelet);
    let pods = world.api::<Pod>().list(&of_component("consumer")).await?;
    let pod = pods.items.first().map(ResourceExt::name_any).unwrap_or_default();
    world.api::<Pod>().delete(&pod, &DeleteParams::default()).await?;
    expect_condition(&world, "ConsumerAvailable", "False", "1 of 2 pods are available").await?;
    let ready = world.wait_for("Ready", "False", "Progressing").await?;
    ensure!(ready["message"] == "ConsumerAvailable: 1 of 2 pods are available", "{ready}");
    Ok(())
}

fn autoscaling(min: i32, max: i32) -> Value {
    json!({ "spec": { "producer": { "replicas": null, "autoscaling": { "min": min, "max": max } } } })
}

async fn autoscaler(world: &World) -> Result<Value> {
    let api = world.objects("HorizontalPodAutoscaler");
    let found = eventually("the autoscaler", PATIENCE, async || api.get("main-producer").await).await?;
    Ok(serde_json::to_value(found)?)
}

/// Scales as an autoscaler does.
async fn scale(world: &World, replicas: i32) -> Result<()> {
    let parameters = PatchParams { field_manager: Some("autoscaler".to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
    world.api::<Deployment>().patch_scale("main-producer", &parameters, &patch).await?;
    Ok(())
}

fn replicas(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.replicas
}

/// Returns the field managers of the number of pods.
fn owners_of_replicas(deployment: &Deployment) -> BTreeSet<String> {
    let entries = deployment.metadata.managed_fields.iter().flatten();
    let with_replicas = entries.filter(|entry| {
        entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer("/f:spec/f:replicas").is_some())
    });
    with_replicas.filter_map(|entry| entry.manager.clone()).collect()
}

fn of_component(component: &str) -> ListParams {
    ListParams::default().labels(&format!("app.kubernetes.io/instance={NAME},app.kubernetes.io/component={component}"))
}

async fn pods_of(world: &World, component: &str) -> Result<BTreeSet<String>> {
    let pods = world.api::<Pod>().list(&of_component(component)).await?;
    Ok(pods.items.iter().filter_map(ResourceExt::uid).collect())
}

async fn expect_condition(world: &World, kind: &str, status: &str, message: &str) -> Result<()> {
    eventually(&format!("{kind} {status}: {message}"), PATIENCE, async || {
        let condition = world.condition(kind).await?;
        ensure!(condition["status"] == status && condition["message"] == message, "{condition}");
        Ok(())
    })
    .await
}
