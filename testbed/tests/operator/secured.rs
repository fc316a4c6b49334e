//! Servers that require TLS and logins. The spec's settings reach operator and pods, refusals are reported with the
//! Secret to check, and authorities can be replaced without an outage.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use orderflow_testbed::{Authority, Service, Stack, kafka};
use serde_json::{Value, json};

use crate::{
    pods::an_order_is_notified,
    support::{World, kubernetes},
};

const COMPONENTS: [&str; 2] = ["producer", "consumer"];

#[tokio::test(flavor = "multi_thread")]
async fn an_orderflow_is_ready_on_servers_that_require_tls_and_logins() -> Result<()> {
    let world = World::on(kubernetes().await?, Stack::builder().secured().start().await?).await?;
    let (_operator, _kubelet) = (world.operator().await?, world.kubelet());
    trust(&world, &authority(&world)?).await?;
    log_in(&world, kafka::PASSWORD).await?;
    world.create(secured(&world)).await?;
    world.wait_for("Ready", "True", "Available").await?;
    an_order_is_notified(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_the_brokers_refuse_is_not_rolled_out() -> Result<()> {
    const WRONG: &str = "a-wrong-password-of-kafka";
    let world = World::on(kubernetes().await?, Stack::builder().secured().start().await?).await?;
    let (operator, _kubelet) = (world.operator().await?, world.kubelet());
    trust(&world, &authority(&world)?).await?;
    log_in(&world, kafka::PASSWORD).await?;
    world.create(secured(&world)).await?;
    world.wait_for("Ready", "True", "Available").await?;
    let before = config_hashes(&world).await?;

    log_in(&world, WRONG).await?;
    let refused = world.wait_for("TopicReady", "False", "Refused").await?;
    let message = refused["message"].as_str().unwrap_or_default();
    ensure!(message.contains("the brokers refuse the login"), "{message}");
    ensure!(message.ends_with("see Secret kafka-user, key password"), "{message}");
    world.settled(&operator).await?;
    ensure!(config_hashes(&world).await? == before, "it was rolled out");
    let shown = format!("{refused} {:?} {}", world.events().await?, operator.process().log_since_start());
    ensure!(![WRONG, kafka::PASSWORD].iter().any(|secret| shown.contains(secret)), "{shown}");

    log_in(&world, kafka::PASSWORD).await?;
    world.wait_for("Ready", "True", "Available").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_replaced_without_an_outage() -> Result<()> {
    let world = World::on(kubernetes().await?, Stack::builder().own().secured().start().await?).await?;
    let (operator, _kubelet) = (world.operator().await?, world.kubelet());
    let old = authority(&world)?;
    trust(&world, &old).await?;
    log_in(&world, kafka::PASSWORD).await?;
    world.create(secured(&world)).await?;
    world.wait_for("Ready", "True", "Available").await?;
    let with_old = config_hashes(&world).await?;

    let new = Authority::new("the-next")?;
    trust(&world, &format!("{old}{}", new.pem())).await?;
    let with_both = rolled_from(&world, &with_old).await?;
    world.wait_for("Ready", "True", "Available").await?;

    let services = world.stack.services();
    for postgres in &services.postgres {
        postgres.renew(&new.loopback("postgres")?)?;
        postgres.start_again().await?;
    }
    services.kafka.renew(&new.loopback("kafka")?)?;
    services.kafka.start_again().await?;
    world.force_reconcile(&operator).await?;
    world.wait_for("Ready", "True", "Available").await?;
    an_order_is_notified(&world).await?;

    trust(&world, &new.pem()).await?;
    let with_new = rolled_from(&world, &with_both).await?;
    world.wait_for("Ready", "True", "Available").await?;

    // If the old one is restored, the condition names the cause, and no pod gets it.
    trust(&world, &old).await?;
    for (condition, secret) in [("ShardsReady", "postgres-ca"), ("TopicReady", "kafka-ca")] {
        let refused = world.wait_for(condition, "False", "Refused").await?;
        let message = refused["message"].as_str().unwrap_or_default();
        ensure!(message.contains("certificate is not accepted"), "{message}");
        ensure!(message.contains(&format!("see Secret {secret}, key ca.crt")), "{message}");
    }
    world.settled(&operator).await?;
    ensure!(config_hashes(&world).await? == with_new, "it was rolled out");
    Ok(())
}

fn authority(world: &World) -> Result<String> {
    let file = world.stack.postgres(1).ca_file().context("a secured stack has an authority")?;
    Ok(std::fs::read_to_string(file)?)
}

async fn trust(world: &World, pem: &str) -> Result<()> {
    world.put_secret("postgres-ca", &[("ca.crt", pem)]).await?;
    world.put_secret("kafka-ca", &[("ca.crt", pem)]).await
}

async fn log_in(world: &World, password: &str) -> Result<()> {
    world.put_secret("kafka-user", &[("username", kafka::USER), ("password", password)]).await
}

fn secured(world: &World) -> Value {
    let mut orderflow = world.orderflow_with(&json!({ "spec": { "topic": {
        "tls": { "caSecretRef": { "name": "kafka-ca", "key": "ca.crt" } },
        "sasl": { "mechanism": "SCRAM-SHA-512", "secretRef": { "name": "kafka-user" } },
    }}}));
    for shard in 0..2 {
        orderflow["spec"]["shards"][shard]["caSecretRef"] = json!({ "name": "postgres-ca", "key": "ca.crt" });
    }
    orderflow
}

/// Returns the hashes of what the pods of both programs get from Secrets.
async fn config_hashes(world: &World) -> Result<Vec<String>> {
    let mut hashes = Vec::new();
    for component in COMPONENTS {
        hashes.push(config_hash(&world.deployment(component).await?).context("a pod without a config hash")?);
    }
    Ok(hashes)
}

/// Waits until both programs' pods get other values than before.
async fn rolled_from(world: &World, before: &[String]) -> Result<Vec<String>> {
    for (component, before) in std::iter::zip(COMPONENTS, before) {
        let rolled = |deployment: &Deployment| config_hash(deployment).is_some_and(|hash| hash != *before);
        world.deployment_that(component, "with other values", rolled).await?;
    }
    config_hashes(world).await
}

fn config_hash(deployment: &Deployment) -> Option<String> {
    let template = &deployment.spec.as_ref()?.template;
    template.metadata.as_ref()?.annotations.as_ref()?.get("orderflow.dev/config-hash").cloned()
}
