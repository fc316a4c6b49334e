//! The pods that no node here runs. A restricted namespace accepts them, they get secrets only by name, and their
//! environment is enough for the programs to serve.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{EnvVar, Namespace, Pod, PodTemplateSpec, Secret, ServiceAccount},
};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use orderflow_testbed::{
    Authority, Consumer, Isolation, Postgres, Producer, eventually, folder, http, operator::create,
    product::Environment, wait::PATIENCE,
};
use serde_json::{Value, json};

use crate::support::{NAME, World};

const COMPONENTS: [&str; 2] = ["producer", "consumer"];

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_namespace_accepts_the_pods_with_every_option() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    let _postgres = everything(&world).await?;
    let namespace = format!("{}-restricted", world.namespace);
    let label = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
    let metadata = json!({ "name": namespace, "labels": label });
    create::<Namespace>(&Api::all(world.client.clone()), json!({ "metadata": metadata })).await?;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), &namespace);
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), &namespace);
    for component in COMPONENTS {
        let template = template(&world.deployment(component).await?)?;
        let account = template.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        create(&accounts, json!({ "metadata": { "name": account } })).await?;

        let pod = |name: &str| Pod {
            metadata: kube::api::ObjectMeta {
                name: Some(name.to_owned()),
                ..template.metadata.clone().unwrap_or_default()
            },
            spec: template.spec.clone(),
            ..Pod::default()
        };
        let taken = pods.create(&PostParams::default(), &pod(&format!("{component}-taken"))).await;
        ensure!(taken.is_ok(), "{component}: {taken:?}");

        // The namespace does check its pods.
        let mut harmful = pod(&format!("{component}-refused"));
        for container in harmful.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
            container.security_context = None;
        }
        let refused = pods.create(&PostParams::default(), &harmful).await;
        ensure!(format!("{refused:?}").contains("violates PodSecurity"), "{component}: {refused:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_given_secrets_by_name_and_only_their_own() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    let _postgres = everything(&world).await?;
    let secrets = world.api::<Secret>().list(&ListParams::default()).await?;
    let values: Vec<String> = secrets
        .into_iter()
        .flat_map(|secret| secret.data.unwrap_or_default().into_values())
        .filter_map(|value| String::from_utf8(value.0).ok())
        // A single line stands for a certificate, because JSON escapes line ends.
        .filter_map(|value| value.lines().find(|line| !line.starts_with("-----")).map(ToOwned::to_owned))
        .collect();
    ensure!(values.len() >= 9, "only {} values", values.len());
    for component in COMPONENTS {
        let deployment = world.deployment(component).await?;
        let text = serde_json::to_string(&deployment)?;
        ensure!(!values.iter().any(|value| text.contains(value)), "{component} shows a secret: {text}");
        ensure!(text.contains("\"kafka-user\"") && text.contains("\"kafka-ca\""), "{component}: {text}");
        let names: Vec<String> = variables(&deployment)?.into_iter().map(|variable| variable.name).collect();
        let of_storage: Vec<_> = names
            .iter()
            .filter(|name| ["PG_", "S3_", "AWS_", "SHARDS"].iter().any(|of| name.starts_with(of)))
            .collect();
        ensure!(of_storage.is_empty() == (component == "consumer"), "{component}: {of_storage:?}");
        let volumes = template(&deployment)?.spec.and_then(|spec| spec.volumes).unwrap_or_default();
        let of_postgres = volumes.iter().filter(|volume| volume.name.contains("postgres")).count();
        ensure!(of_postgres == usize::from(component == "producer"), "{component}: {volumes:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_notified_with_the_environment_of_the_pods() -> Result<()> {
    let world = World::new().await?;
    let _operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    for kind in ["ShardsReady", "BucketReady", "TopicReady"] {
        world.wait_for(kind, "True", "Provisioned").await?;
    }

    an_order_is_notified(&world).await
}

/// Runs the real programs in the environment of their pods, and sends an order through them.
pub async fn an_order_is_notified(world: &World) -> Result<()> {
    let folder = folder::for_test_process()?;
    let producer = Producer::builder(folder, environment(world, "producer").await?).start().await?;
    let consumer = Consumer::builder(folder, environment(world, "consumer").await?).start().await?;
    producer.ready(PATIENCE).await?;
    consumer.ready(PATIENCE).await?;
    let url = format!("{}/api/orders", producer.url()?);
    let order = json!({ "user_id": "ada", "product_name": "Keyboard", "quantity": 2, "price": 149.99 });
    let answer = http::client().post(&url).json(&order).send().await?;
    let (status, text) = (answer.status(), answer.text().await?);
    ensure!(status == 201, "{status}: {text}");
    let placed: Value = serde_json::from_str(&text)?;
    let id = placed["order"]["id"].as_str().with_context(|| format!("no id in {text}"))?;

    let topic = format!("{}.notifications", world.topic());
    eventually(&format!("the notification of order {id}"), PATIENCE, async || {
        let records = world.stack.read_topic(&topic, Isolation::ReadCommitted).await?;
        let found = records.iter().any(|record| record.json::<Value>().is_ok_and(|value| value["order_id"] == id));
        ensure!(found, "{} others", records.len());
        Ok(())
    })
    .await?;
    eventually("the receipt", PATIENCE, async || {
        let order: Value = http::client().get(format!("{url}/{id}")).send().await?.json().await?;
        ensure!(order["receipt_status"] == "stored", "{order}");
        Ok(())
    })
    .await
}

/// Returns the environment of a component's container as a node would build it, and writes the files that it names.
/// Only the ports differ, because processes on one machine cannot share them, and the folders of the files.
pub async fn environment(world: &World, component: &str) -> Result<Environment> {
    let mut environment = BTreeMap::new();
    let mounted = mounted(world, component).await?;
    for EnvVar { name, value, value_from } in variables(&world.deployment(component).await?)? {
        let value = match (value, value_from) {
            (Some(value), None) => match mounted.get(&value) {
                Some(file) => file.to_string_lossy().into_owned(),
                None => value.replace("$$", "$"),
            },
            (None, Some(source)) => {
                if let Some(key) = source.secret_key_ref {
                    let data = world.api::<Secret>().get(&key.name).await?.data.unwrap_or_default();
                    let value =
                        data.get(&key.key).with_context(|| format!("Secret {} has no {}", key.name, key.key))?;
                    String::from_utf8(value.0.clone())?
                } else {
                    let field = source.field_ref.with_context(|| format!("{name} comes from elsewhere"))?;
                    ensure!(field.field_path == "metadata.name", "{field:?}");
                    format!("{NAME}-{component}-{}", world.namespace)
                }
            }
            both => anyhow::bail!("{name}: {both:?}"),
        };
        environment.insert(name, value);
    }
    for port in ["PORT", "INTERNAL_PORT", "ADMIN_PORT"] {
        environment.entry(port.to_owned()).and_modify(|value| "0".clone_into(value));
    }
    Ok(environment.into_iter().collect())
}

/// Returns the files of a component's container: path in the pod, path here.
async fn mounted(world: &World, component: &str) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let pod = template(&world.deployment(component).await?)?.spec.context("a template without a pod")?;
    for mount in pod.containers.iter().flat_map(|container| container.volume_mounts.iter().flatten()) {
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let source = volume.and_then(|volume| volume.secret.as_ref()).context("a mount of something else")?;
        let secret = world.api::<Secret>().get(source.secret_name.as_deref().unwrap_or_default()).await?;
        for item in source.items.iter().flatten() {
            let value = secret.data.as_ref().and_then(|data| data.get(&item.key)).context("no such key")?;
            let name = format!("{}-{component}-{}-{}", world.namespace, mount.name, item.path);
            let file = folder::for_test_process()?.join(name);
            std::fs::write(&file, &value.0)?;
            files.insert(format!("{}/{}", mount.mount_path, item.path), file);
        }
    }
    Ok(files)
}

/// Creates `main` with every option of a spec for its pods, and waits until both Deployments have it. Returns the
/// Postgres of its first shard.
async fn everything(world: &World) -> Result<Postgres> {
    let authority = Authority::new("a company")?;
    let name = format!("postgres-{}", world.namespace);
    let postgres =
        Postgres::start_secured(folder::for_test_process()?, &name, &authority.loopback("postgres")?).await?;
    let authority = authority.pem();
    let dsn = postgres.create_database("orders").await?;
    world.put_secret("postgres-shard1", &[("dsn", &dsn), ("ca.crt", &authority)]).await?;
    let credentials = [
        ("AWS_ACCESS_KEY_ID", "AKIA0EXAMPLE0ID"),
        ("AWS_SECRET_ACCESS_KEY", "a-long-key"),
        ("AWS_SESSION_TOKEN", "a-token"),
    ];
    world.put_secret("s3-credentials", &credentials).await?;
    world.put_secret("kafka-ca", &[("ca.crt", &authority)]).await?;
    world.put_secret("kafka-user", &[("username", "a-user-of-kafka"), ("password", "a-password-of-kafka")]).await?;
    let mut orderflow = world.orderflow_with(&json!({ "spec": { "producer": {
        "serviceAccount": { "annotations": { "example.com/role": "orders" } },
    }}}));
    orderflow["spec"]["shards"][0]["caSecretRef"] = json!({ "name": "postgres-shard1", "key": "ca.crt" });
    world.create(orderflow).await?;
    world.deployments_exist().await?;
    // The broker here supports neither. By now the topics exist, and existing Deployments follow the spec.
    world
        .patch(json!({ "spec": { "topic": {
            "tls": { "caSecretRef": { "name": "kafka-ca", "key": "ca.crt" } },
            "sasl": { "mechanism": "SCRAM-SHA-512", "secretRef": { "name": "kafka-user" } },
        }}}))
        .await?;
    for component in COMPONENTS {
        let logs_in = |deployment: &Deployment| {
            variables(deployment).is_ok_and(|all| all.iter().any(|variable| variable.name == "KAFKA_SASL_PASSWORD"))
        };
        world.deployment_that(component, "that logs in to Kafka", logs_in).await?;
    }
    Ok(postgres)
}

fn template(deployment: &Deployment) -> Result<PodTemplateSpec> {
    deployment.spec.as_ref().map(|spec| spec.template.clone()).context("a Deployment without a spec")
}

fn variables(deployment: &Deployment) -> Result<Vec<EnvVar>> {
    let container = template(deployment)?.spec.and_then(|spec| spec.containers.into_iter().next());
    container.and_then(|container| container.env).context("a container without variables")
}
