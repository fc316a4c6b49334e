//! While a resource is paused nothing of it is touched, and the pending work is done afterwards.

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use orderflow_testbed::{eventually, postgres, wait::PATIENCE};
use serde_json::{Value, json};

use crate::support::{NAME, World};

fn paused(value: &Value) -> Value {
    json!({ "metadata": { "annotations": { "orderflow.dev/paused": value } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_waits_during_a_pause_is_done_afterwards() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    world.create(world.orderflow()).await?;
    let ready = world.wait_for("Ready", "True", "Available").await?;
    world.settled(&operator).await?;
    world.patch(paused(&json!("true"))).await?;
    world.wait_for("Paused", "True", "PauseRequested").await?;

    let before = world.writes_to_children()?.len();
    world.patch(json!({ "spec": { "producer": { "replicas": 3 }, "networkPolicy": { "enabled": false } } })).await?;
    let port = json!({ "spec": { "ports": [{ "name": "http", "port": 81, "targetPort": "http" }] } });
    world.objects("Service").patch("main-producer", &PatchParams::default(), &Patch::Merge(port)).await?;
    world.objects("PodDisruptionBudget").delete("main-consumer", &DeleteParams::default()).await?;
    for _ in 0..3 {
        world.force_reconcile(&operator).await?;
    }
    let writes = world.writes_to_children()?;
    ensure!(writes.len() == before, "{:?}", &writes[before..]);
    let now = world.condition("Ready").await?;
    ensure!(now == ready, "Ready is {now} and was {ready}");
    let status = world.status(NAME).await?;
    ensure!(status["observedGeneration"] == 1, "a spec that was not acted on was observed: {status}");

    world.patch(paused(&Value::Null)).await?;
    world.wait_for("Paused", "False", "NotPaused").await?;
    eventually("all that was left to be done", PATIENCE, async || {
        let service = world.objects("Service").get("main-producer").await?;
        ensure!(service.data["spec"]["ports"][0]["port"] == 8080, "{service:?}");
        world.objects("PodDisruptionBudget").get("main-consumer").await?;
        let replicas = world.deployment("producer").await?.spec.and_then(|spec| spec.replicas);
        ensure!(replicas == Some(3), "{replicas:?} pods");
        let policies = world.objects("NetworkPolicy").list(&ListParams::default()).await?.items;
        ensure!(policies.is_empty(), "{policies:?}");
        Ok(())
    })
    .await?;
    world.wait_for("Ready", "True", "Available").await?;
    world.settled(&operator).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_is_created_paused_is_not_reconciled() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow_with(&paused(&json!("true")))).await?;
    world.wait_for("Paused", "True", "PauseRequested").await?;
    for _ in 0..3 {
        world.force_reconcile(&operator).await?;
    }
    let status = world.status(NAME).await?;
    let conditions = status["conditions"].as_array().context("no conditions")?;
    let others: Vec<_> = conditions.iter().filter(|condition| condition["type"] != "Paused").collect();
    ensure!(others.len() == 6, "{status}");
    let unknown = |condition: &&Value| condition["status"] == "Unknown" && condition["reason"] == "NotChecked";
    ensure!(others.iter().all(unknown), "{status}");

    let writes = world.writes_to_children()?;
    // The key of the config hashes belongs to the operator itself.
    ensure!(writes.iter().all(|write| write.starts_with("create secrets/")), "{writes:?}");
    for shard in [1, 2] {
        let mut connection = postgres::connect(world.dsn(shard)).await?;
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            .fetch_one(&mut connection)
            .await?;
        ensure!(tables == 0, "{tables} tables");
    }
    ensure!(world.stack.s3().head_bucket().bucket(world.bucket()).send().await.is_err(), "the bucket was made");

    world.patch(paused(&json!("false"))).await?;
    world.deployments_exist().await?;
    world.wait_for("Paused", "False", "NotPaused").await?;
    Ok(())
}
