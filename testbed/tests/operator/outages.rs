//! Servers that are down or frozen. The resource names such a server, the rest keeps running, and the resource recovers
//! without help. Services of a test's own, so few tests, each with many steps.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use orderflow_testbed::{
    Kubernetes, Operator, Service, Stack, eventually, folder, operator::install_definition, postgres, wait::PATIENCE,
};
use serde_json::json;

use crate::{
    secrets::Role,
    support::{NAME, World, reconciles},
};

/// Probes healthy servers often, because a server that goes down sends no event.
const OFTEN: (&str, &str) = ("PROBE_SECONDS", "1");

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_goes_down_is_named_once_and_running_pods_stay() -> Result<()> {
    let world = World::with_own_services().await?;
    let operator = world.operator_with(&[OFTEN]).await?;
    let _kubelet = world.kubelet();
    world.create(world.orderflow()).await?;
    world.wait_for("Ready", "True", "Available").await?;
    let before = deployments(&world).await?;

    world.stack.postgres(2).kill();
    let condition = world.wait_for("ShardsReady", "False", "Unreachable").await?;
    let message = condition["message"].as_str().context("no message")?;
    ensure!(message.contains("shard2") && !message.contains("shard1"), "{message}");
    world.wait_for("Ready", "False", "Unreachable").await?;
    more_reconciles(&operator).await?;
    let status = world.status(NAME).await?;
    ensure!(status["shardsReady"] == "1/2", "{status}");
    for (kind, reason) in [
        ("BucketReady", "Provisioned"),
        ("TopicReady", "Provisioned"),
        ("ProducerAvailable", "Available"),
        ("ConsumerAvailable", "Available"),
    ] {
        let condition = world.condition(kind).await?;
        ensure!(condition["status"] == "True" && condition["reason"] == reason, "{condition}");
    }

    world.stack.postgres(2).start_again().await?;
    world.wait_for("Ready", "True", "Available").await?;
    ensure!(deployments(&world).await? == before, "the Deployments were changed");
    let events = world.events().await?;
    let warnings: Vec<_> = events.iter().filter(|(severity, ..)| severity == "Warning").collect();
    ensure!(warnings.len() == 1 && warnings[0].1 == "Unreachable" && warnings[0].2.contains("shard2"), "{warnings:?}");
    Ok(())
}

/// A rollout causes such reconciles: each pod changes the Deployment's status while the shard is down.
#[tokio::test(flavor = "multi_thread")]
async fn reconciles_for_other_reasons_do_not_delay_the_retry() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    let role = Role::new(&world, 1).await?;
    world.put_secret("postgres-shard1", &[("dsn", &role.dsn())]).await?;
    world.create(world.orderflow()).await?;
    world.wait_for("Ready", "True", "Available").await?;
    // The server runs but is down for this role: it reports that no connection is left.
    role.execute(&format!("ALTER ROLE {} CONNECTION LIMIT 0", role.name)).await?;
    for _ in 0..10 {
        world.force_reconcile(&operator).await?;
    }
    world.wait_for("ShardsReady", "False", "Unreachable").await?;
    role.execute(&format!("ALTER ROLE {} CONNECTION LIMIT -1", role.name)).await?;
    world.wait_for("Ready", "True", "Available").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_down_from_the_beginning_blocks_no_other_part() -> Result<()> {
    let world = World::with_own_services().await?;
    let _operator = world.operator().await?;
    let _kubelet = world.kubelet();
    world.stack.postgres(2).kill();
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.wait_for("ShardsReady", "False", "Unreachable").await?;
    world.wait_for("BucketReady", "True", "Provisioned").await?;
    world.wait_for("TopicReady", "True", "Provisioned").await?;
    world.wait_for("ProducerAvailable", "True", "Available").await?;
    let status = world.status(NAME).await?;
    ensure!(status["shards"][0]["ready"] == true && status["shards"][1]["ready"] == false, "{status}");

    world.stack.postgres(2).start_again().await?;
    world.wait_for("Ready", "True", "Available").await?;
    is_marked(&world, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_shard_the_producers_wait_and_the_consumers_are_created() -> Result<()> {
    let world = World::with_own_services().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    for shard in [1, 2] {
        world.stack.postgres(shard).kill();
    }
    world.create(world.orderflow()).await?;
    world.wait_for("ConsumerAvailable", "True", "Available").await?;
    world.wait_for("ProducerAvailable", "False", "WaitingForShard").await?;
    more_reconciles(&operator).await?;
    require_none(&world, "producer").await?;

    for shard in [1, 2] {
        world.stack.postgres(shard).start_again().await?;
    }
    world.wait_for("Ready", "True", "Available").await?;
    is_marked(&world, 1).await?;
    is_marked(&world, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_the_consumers_wait_and_the_producers_are_created() -> Result<()> {
    let world = World::with_own_services().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    world.stack.kafka().kill();
    world.create(world.orderflow()).await?;
    world.wait_for("TopicReady", "False", "Unreachable").await?;
    world.wait_for("ProducerAvailable", "True", "Available").await?;
    world.wait_for("ConsumerAvailable", "False", "WaitingForTopic").await?;
    more_reconciles(&operator).await?;
    require_none(&world, "consumer").await?;

    world.stack.kafka().start_again().await?;
    world.wait_for("Ready", "True", "Available").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_s3_all_else_is_made() -> Result<()> {
    let world = World::with_own_services().await?;
    let _operator = world.operator().await?;
    let _kubelet = world.kubelet();
    world.stack.object_store().kill();
    world.create(world.orderflow()).await?;
    world.wait_for("BucketReady", "False", "Unreachable").await?;
    world.wait_for("ShardsReady", "True", "Provisioned").await?;
    world.wait_for("TopicReady", "True", "Provisioned").await?;
    world.wait_for("ProducerAvailable", "True", "Available").await?;
    world.wait_for("ConsumerAvailable", "True", "Available").await?;
    world.wait_for("Ready", "False", "Unreachable").await?;

    world.stack.object_store().start_again().await?;
    world.wait_for("Ready", "True", "Available").await?;
    Ok(())
}

/// A connection that stays open, without a response.
/// The longest that frozen servers may delay a change. Each check of a server ends after 15 s; without that bound, the
/// clients' own timeouts add up to more than this.
const UNBLOCKED: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn frozen_servers_do_not_block_a_change() -> Result<()> {
    let world = World::with_own_services().await?;
    let _operator = world.operator().await?;
    let _kubelet = world.kubelet();
    world.create(world.orderflow()).await?;
    world.wait_for("Ready", "True", "Available").await?;
    let frozen: [&dyn Service; 3] = [world.stack.kafka(), world.stack.object_store(), world.stack.postgres(2)];
    for service in &frozen {
        service.pause();
    }
    world.patch(json!({ "spec": { "producer": { "replicas": 3 }, "consumer": { "replicas": 4 } } })).await?;
    for (component, replicas) in [("producer", 3), ("consumer", 4)] {
        let what = format!("with {replicas} replicas");
        let accept = |deployment: &Deployment| replicas_of(deployment) == Some(replicas);
        world.deployment_within(UNBLOCKED, component, &what, accept).await?;
    }
    for kind in ["ShardsReady", "BucketReady", "TopicReady"] {
        world.wait_for(kind, "False", "Unreachable").await?;
    }
    for service in &frozen {
        service.resume();
    }
    world.wait_for("Ready", "True", "Available").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_applied_after_an_outage_of_the_api_server() -> Result<()> {
    let kubernetes = Kubernetes::start(folder::for_test_process()?, "killed-kubernetes").await?;
    // A World borrows its control plane for the whole process; the processes end with this one.
    let kubernetes: &'static Kubernetes = Box::leak(Box::new(kubernetes));
    install_definition(&kubernetes.client()?).await?;
    let world = World::on(kubernetes, Stack::shared().await?).await?;
    let _kubelet = world.kubelet();
    world.create(world.orderflow()).await?;

    // The Lease outlasts the outage, so the same process goes on.
    let operator = world.operator_with(&[("LEASE_SECONDS", "3600")]).await?;
    world.wait_for("Ready", "True", "Available").await?;
    let pid = operator.pid();
    kill_and_start(kubernetes).await?;
    is_acted_on(&world, 3).await?;
    ensure!(operator.is_running() && operator.pid() == pid, "the operator ended");
    operator.stop().await?;

    // The Lease expires, so the process ends, because another may lead by now. Its supervisor starts it again.
    let operator = world.operator_with(&[("LEASE_SECONDS", "3")]).await?;
    world.settled(&operator).await?;
    kubernetes.api_server().kill();
    let status = operator.process().wait_for_exit(PATIENCE).await?;
    ensure!(!status.success(), "{status}");
    kubernetes.start_api_server_again().await?;
    operator.start_again().await?;
    is_acted_on(&world, 4).await
}

async fn kill_and_start(kubernetes: &Kubernetes) -> Result<()> {
    kubernetes.api_server().kill();
    kubernetes.start_api_server_again().await
}

async fn is_acted_on(world: &World, replicas: i32) -> Result<()> {
    eventually("a change to be taken", PATIENCE, async || {
        world.patch(json!({ "spec": { "producer": { "replicas": replicas } } })).await
    })
    .await?;
    let what = format!("with {replicas} replicas");
    world.deployment_that("producer", &what, |deployment| replicas_of(deployment) == Some(replicas)).await?;
    world.wait_for("Ready", "True", "Available").await?;
    Ok(())
}

/// Returns the replicas in the specs, and how often each spec was changed.
async fn deployments(world: &World) -> Result<[(Option<i64>, Option<i32>); 2]> {
    let of = |deployment: &Deployment| (deployment.metadata.generation, replicas_of(deployment));
    Ok([of(&world.deployment("producer").await?), of(&world.deployment("consumer").await?)])
}

fn replicas_of(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.replicas
}

/// Waits for two reconciles at least that began after this call.
async fn more_reconciles(operator: &Operator) -> Result<()> {
    let before = reconciles(operator).await?;
    eventually("more reconciles", PATIENCE, async || {
        let now = reconciles(operator).await?;
        ensure!(now >= before + 3, "{now} reconciles, {before} before");
        Ok(())
    })
    .await
}

async fn require_none(world: &World, component: &str) -> Result<()> {
    let found = world.api::<Deployment>().get_opt(&format!("{NAME}-{component}")).await?;
    ensure!(found.is_none(), "the {component} was made");
    Ok(())
}

async fn is_marked(world: &World, shard: usize) -> Result<()> {
    let mut connection = postgres::connect(world.dsn(shard)).await?;
    let name: String = sqlx::query_scalar("SELECT shard_name FROM orderflow_meta").fetch_one(&mut connection).await?;
    ensure!(name == format!("shard{shard}"), "{name}");
    Ok(())
}
