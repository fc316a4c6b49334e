//! Secrets of a resource: missing, broken, rotated, merely touched. No value of a Secret is ever shown.

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Pod, Secret, Service as KubernetesService},
    events::v1::Event,
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use orderflow_testbed::{Operator, Service, eventually, postgres, wait::PATIENCE};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::support::{NAME, SECOND, World, reconciles};

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_named_and_harms_nothing_else() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    remove_secret(&world, "postgres-shard2").await?;
    world.create(world.orderflow()).await?;

    let shards = world.wait_for("ShardsReady", "False", "SecretMissing").await?;
    require_named(&shards, &["shard2", "Secret postgres-shard2", "key dsn", "1 of 2"])?;
    require_named(&world.wait_for("Ready", "False", "SecretMissing").await?, &["Secret postgres-shard2", "key dsn"])?;
    world.wait_for("BucketReady", "True", "Provisioned").await?;
    world.wait_for("TopicReady", "True", "Provisioned").await?;
    let status = world.status(NAME).await?;
    ensure!(status["shardsReady"] == "1/2", "{status}");
    ensure!(status["shards"][0]["ready"] == true && status["shards"][1]["reason"] == "SecretMissing", "{status}");

    world.settled(&operator).await?;
    let deployments = world.api::<Deployment>().list(&ListParams::default()).await?;
    ensure!(deployments.items.is_empty(), "created without a Secret: {:?}", names(&deployments.items));
    Ok(())
}

/// Uses two lines that were pasted into one value: the signer of the AWS SDK panics on them.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_character_in_a_secret_is_named_and_harms_no_other_resource() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    let mut pasted = world.orderflow();
    let values = [("AWS_ACCESS_KEY_ID", "AKIAhunter2\nAKIAhunter3"), ("AWS_SECRET_ACCESS_KEY", "hunter4")];
    world.put_secret("pasted", &values).await?;
    pasted["spec"]["bucket"]["credentialsSecretRef"]["name"] = json!("pasted");
    world.create(pasted).await?;
    let bucket = world.wait_for("BucketReady", "False", "SecretInvalid").await?;
    require_named(&bucket, &["Secret pasted, key AWS_ACCESS_KEY_ID", r"'\n' as character 12"])?;
    ensure!(!bucket.to_string().contains("hunter"), "{bucket}");
    world.create(world.second().await?).await?;
    world.wait_for_named(SECOND, "Ready", "True", "Available").await?;

    let s3 = world.stack.object_store();
    let (id, secret) = (s3.access_key_id(), s3.secret_access_key());
    world.put_secret("pasted", &[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)]).await?;
    world.wait_for("Ready", "True", "Available").await?;
    ensure!(operator.process().is_running(), "{}", operator.process().log_since_start());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_causes_exactly_one_warning() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    remove_secret(&world, "postgres-shard2").await?;
    world.create(world.orderflow()).await?;
    world.wait_for("ShardsReady", "False", "SecretMissing").await?;
    // The status is written once more, and its reason is unchanged.
    world.patch(json!({ "spec": { "producer": { "replicas": 3 } } })).await?;
    eventually("the status of the change", PATIENCE, async || {
        let status = world.status(NAME).await?;
        ensure!(status["observedGeneration"] == 2, "{status}");
        anyhow::Ok(())
    })
    .await?;
    world.settled(&operator).await?;
    let events = world.events().await?;
    let warnings: Vec<_> = events.iter().filter(|(severity, ..)| severity == "Warning").collect();
    ensure!(warnings.len() == 1, "{warnings:#?}");
    let (_, reason, note) = warnings[0];
    ensure!(reason == "SecretMissing" && note.contains("Secret postgres-shard2 (key dsn)"), "{warnings:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_arrives_is_noticed_at_once() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    remove_secret(&world, "s3-credentials").await?;
    world.create(world.orderflow()).await?;
    world.wait_for("BucketReady", "False", "SecretMissing").await?;
    world.settled(&operator).await?;
    let began = Instant::now();
    world.put_s3_credentials().await?;
    world.deployments_exist().await?;
    println!("from a Secret's arrival to the Deployments: {:?}", began.elapsed());
    world.wait_for("Ready", "True", "Available").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_cannot_be_used_is_named_and_never_shown() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator_with(&[("LOG", "debug")]).await?;
    world.create(world.orderflow()).await?;
    world.wait_for("ShardsReady", "True", "Provisioned").await?;
    let hidden = Uuid::now_v7().simple().to_string();
    let text = |text: String| json!({ "stringData": { "dsn": text } });
    // An É in Latin-1, then text that must not be shown.
    let no_text = [vec![0xc9], hidden.clone().into_bytes()].concat();
    let cases = [
        ("no such key", json!({ "stringData": { "url": hidden } }), "SecretKeyMissing"),
        ("another system's", text(format!("mysql://user:{hidden}@127.0.0.1/orders")), "SecretInvalid"),
        ("not a URL", text(format!("host=127.0.0.1 password={hidden}")), "SecretInvalid"),
        ("a broken port", text(format!("postgres://user:{hidden}@127.0.0.1:{hidden}/orders")), "SecretInvalid"),
        (
            "an unknown mode",
            text(format!("postgres://user:{hidden}@127.0.0.1/orders?sslmode={hidden}")),
            "SecretInvalid",
        ),
        ("empty", text(" \n".to_owned()), "SecretInvalid"),
        ("not text", json!({ "data": { "dsn": k8s_openapi::ByteString(no_text) } }), "SecretInvalid"),
    ];
    for (case, content, reason) in cases {
        replace_secret(&world, "postgres-shard1", content).await?;
        let condition = world.wait_for("ShardsReady", "False", reason).await.context(case)?;
        require_named(&condition, &["shard1", "Secret postgres-shard1", "dsn"]).context(case)?;
        replace_secret(&world, "postgres-shard1", text(world.dsn(1).to_owned())).await?;
        world.wait_for("ShardsReady", "True", "Provisioned").await.context(case)?;
    }
    world.settled(&operator).await?;
    let shown = shown(&world, &operator).await?;
    ensure!(shown.contains("SecretInvalid"), "the searched text lacks the resource's events");
    require_hidden(&shown, &hidden)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_rolls_the_producers_only() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    let role = Role::new(&world, 1).await?;
    world.put_secret("postgres-shard1", &[("dsn", &role.dsn())]).await?;
    world.create(world.orderflow()).await?;
    world.wait_for("Ready", "True", "Available").await?;
    world.settled(&operator).await?;
    let (producer, consumer) = (world.deployment("producer").await?, world.deployment("consumer").await?);

    let role = role.rotate().await?;
    let began = Instant::now();
    world.put_secret("postgres-shard1", &[("dsn", &role.dsn())]).await?;
    let rolled = world
        .deployment_that("producer", "with another config hash", |now| config_hash(now) != config_hash(&producer))
        .await?;
    println!("from a rotated password to the changed pod template: {:?}", began.elapsed());
    eventually("a second ReplicaSet", PATIENCE, async || {
        let sets = replica_sets(&world, "producer").await?;
        ensure!(sets == 2, "{sets}");
        anyhow::Ok(())
    })
    .await?;
    world.settled(&operator).await?;
    world.wait_for("Ready", "True", "Available").await?;
    ensure!(config_hash(&rolled).is_some(), "no hash on the pods");
    let untouched = world.deployment("consumer").await?;
    ensure!(untouched.metadata.generation == consumer.metadata.generation, "the consumer was changed as well");
    ensure!(replica_sets(&world, "consumer").await? == 1, "the consumer was rolled as well");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_not_rolled_out() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    let role = Role::new(&world, 1).await?;
    world.put_secret("postgres-shard1", &[("dsn", &role.dsn())]).await?;
    world.create(world.orderflow()).await?;
    world.wait_for("Ready", "True", "Available").await?;
    let before = world.deployment("producer").await?;
    world.put_secret("postgres-shard1", &[("dsn", &role.with_another_password().dsn())]).await?;
    let refused = world.wait_for("ShardsReady", "False", "Refused").await?;
    require_named(&refused, &["shard1", "password authentication failed"])?;
    world.settled(&operator).await?;
    let after = world.deployment("producer").await?;
    ensure!(after.metadata.generation == before.metadata.generation, "the producers were rolled");
    world.wait_for("ProducerAvailable", "True", "Available").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_touched_label_of_a_secret_causes_a_reconcile_and_no_write() -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    world.settled(&operator).await?;
    let writes = world.writes()?.len();
    for (secret, what) in [("postgres-shard1", "labels"), ("s3-credentials", "annotations")] {
        let before = reconciles(&operator).await?;
        let touch = json!({ "metadata": { what: { "test": "touched" } } });
        world.api::<Secret>().patch(secret, &PatchParams::default(), &Patch::Merge(touch)).await?;
        eventually("a reconcile", PATIENCE, async || {
            let now = reconciles(&operator).await?;
            ensure!(now > before, "{now} reconciles");
            anyhow::Ok(())
        })
        .await?;
    }
    let after = world.writes()?;
    ensure!(after.len() == writes, "{:?}", &after[writes..]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_resources_that_name_one_secret_are_both_reconciled() -> Result<()> {
    let world = World::with_localstack().await?;
    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    world.create(world.orderflow()).await?;
    world.create(world.second().await?).await?;
    for name in [NAME, SECOND] {
        world.wait_for_named(name, "Ready", "True", "Available").await?;
    }
    // No other event wakes them any more.
    world.settled(&operator).await?;
    let deployments: Api<Deployment> = world.api();
    let producers = [NAME, SECOND].map(|name| format!("{name}-producer"));
    let mut before = Vec::new();
    for producer in &producers {
        before.push(config_hash(&deployments.get(producer).await?).cloned());
    }
    put_s3_credentials(&world, "rotated").await?;
    for (producer, before) in std::iter::zip(&producers, before) {
        eventually(&format!("{producer} with another config hash"), PATIENCE, async || {
            let now = config_hash(&deployments.get(producer).await?).cloned();
            ensure!(now != before, "{now:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_secret_is_ever_shown() -> Result<()> {
    let world = World::with_localstack().await?;
    let operator = world.operator_with(&[("LOG", "debug")]).await?;
    let _kubelet = world.kubelet();
    let (mut role, mut hidden) = (Role::new(&world, 1).await?, BTreeSet::new());
    let s3 = Uuid::now_v7().simple().to_string();
    let kafka = Uuid::now_v7().simple().to_string();
    world.put_secret("postgres-shard1", &[("dsn", &role.dsn())]).await?;
    put_s3_credentials(&world, &s3).await?;
    world.put_secret("kafka", &[("username", &format!("user-{kafka}")), ("password", &kafka)]).await?;
    hidden.extend([role.password.clone(), s3, kafka]);
    let mut shown_so_far = Vec::new();

    world.create(world.orderflow_with(&json!({ "spec": { "deletionPolicy": "Delete" } }))).await?;
    world.wait_for("Ready", "True", "Available").await?;
    hidden.extend(values_of_secrets(&world).await?);
    shown_so_far.push(shown(&world, &operator).await?);

    let wrong = role.with_another_password();
    world.put_secret("postgres-shard1", &[("dsn", &wrong.dsn())]).await?;
    hidden.insert(wrong.password.clone());
    world.wait_for("ShardsReady", "False", "Refused").await?;
    hidden.extend(values_of_secrets(&world).await?);
    shown_so_far.push(shown(&world, &operator).await?);

    role = role.rotate().await?;
    hidden.insert(role.password.clone());
    world.put_secret("postgres-shard1", &[("dsn", &role.dsn())]).await?;
    world.wait_for("ShardsReady", "True", "Provisioned").await?;
    // The broker of the tests supports no login: the client's error is shown, and must not contain a secret.
    let sasl = json!({ "mechanism": "SCRAM-SHA-512", "secretRef": { "name": "kafka" } });
    world.patch(json!({ "spec": { "topic": { "sasl": sasl } } })).await?;
    world.wait_for("TopicReady", "False", "Refused").await?;
    shown_so_far.push(shown(&world, &operator).await?);
    world.patch(json!({ "spec": { "topic": { "sasl": null } } })).await?;
    world.wait_for("Ready", "True", "Available").await?;
    hidden.extend(values_of_secrets(&world).await?);
    shown_so_far.push(shown(&world, &operator).await?);

    world.orderflows().delete(NAME, &DeleteParams::default()).await?;
    eventually("the resource to be gone", PATIENCE, async || {
        let left = world.orderflows().get_opt(NAME).await?;
        ensure!(left.is_none(), "{:?}", left.map(|left| left.data["status"].clone()));
        anyhow::Ok(())
    })
    .await?;
    shown_so_far.push(shown(&world, &operator).await?);

    let all = shown_so_far.concat();
    for present in ["password authentication failed", "postgres-shard1", "s3-credentials", "config-hash"] {
        ensure!(all.contains(present), "the searched text has no {present:?}");
    }
    ensure!(hidden.len() > 10, "{} values were searched for", hidden.len());
    hidden.iter().try_for_each(|value| require_hidden(&all, value))
}

/// A role that owns the database of a shard, with a password that is used nowhere else.
pub struct Role {
    pub name: String,
    password: String,
    admin: String,
}

impl Role {
    pub async fn new(world: &World, shard: usize) -> Result<Self> {
        let name = format!("role_{}", Uuid::now_v7().simple());
        let role = Self { name, password: password(), admin: world.dsn(shard).to_owned() };
        let (_, database) = role.admin.rsplit_once('/').context("a DSN without a database")?;
        role.execute(&format!("CREATE ROLE {} LOGIN PASSWORD '{}'", role.name, role.password)).await?;
        role.execute(&format!("ALTER DATABASE {database} OWNER TO {}", role.name)).await?;
        Ok(role)
    }

    fn with_another_password(&self) -> Self {
        Self { name: self.name.clone(), password: password(), admin: self.admin.clone() }
    }

    /// Replaces the password; only the new one works from now on.
    async fn rotate(self) -> Result<Self> {
        let role = self.with_another_password();
        role.execute(&format!("ALTER ROLE {} PASSWORD '{}'", role.name, role.password)).await?;
        Ok(role)
    }

    pub fn dsn(&self) -> String {
        let place = self.admin.rsplit('@').next().unwrap_or_default();
        format!("postgres://{}:{}@{place}", self.name, self.password)
    }

    /// Executes a statement as the superuser.
    pub async fn execute(&self, statement: &str) -> Result<()> {
        let mut connection = postgres::connect(&self.admin).await?;
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.context("change a role")?;
        Ok(())
    }
}

fn password() -> String {
    format!("password-{}", Uuid::now_v7().simple())
}

/// Stores any secret key, which only LocalStack accepts.
async fn put_s3_credentials(world: &World, secret: &str) -> Result<()> {
    world.put_secret("s3-credentials", &[("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", secret)]).await
}

async fn remove_secret(world: &World, name: &str) -> Result<()> {
    world.api::<Secret>().delete(name, &DeleteParams::default()).await.context("remove a Secret")?;
    Ok(())
}

/// Replaces the whole content, unlike an apply.
async fn replace_secret(world: &World, name: &str, mut content: Value) -> Result<()> {
    content["metadata"] = json!({ "name": name });
    let secret: Secret = serde_json::from_value(content)?;
    world.api::<Secret>().replace(name, &PostParams::default(), &secret).await.context("replace a Secret")?;
    Ok(())
}

fn require_named(condition: &Value, texts: &[&str]) -> Result<()> {
    let message = condition["message"].as_str().context("no message")?;
    let missing: Vec<_> = texts.iter().filter(|text| !message.contains(**text)).collect();
    ensure!(missing.is_empty(), "{message:?} does not name {missing:?}");
    Ok(())
}

fn require_hidden(shown: &str, value: &str) -> Result<()> {
    if let Some(at) = shown.find(value) {
        let before = shown[..at].char_indices().rev().nth(300).map_or(0, |(at, _)| at);
        anyhow::bail!("a Secret's value is shown after: {}", &shown[before..at]);
    }
    Ok(())
}

/// Returns all text that many users may read: status, events, workloads, the operator's log.
async fn shown(world: &World, operator: &Operator) -> Result<String> {
    let flows = world.orderflows().list(&ListParams::default()).await?;
    let mut texts = vec![serde_json::to_string(&flows)?];
    texts.push(listed::<Event>(world).await?);
    texts.push(listed::<Deployment>(world).await?);
    texts.push(listed::<ReplicaSet>(world).await?);
    texts.push(listed::<Pod>(world).await?);
    texts.push(listed::<KubernetesService>(world).await?);
    texts.push(listed::<NetworkPolicy>(world).await?);
    texts.push(operator.process().log_since_start());
    Ok(texts.join("\n"))
}

async fn listed<K>(world: &World) -> Result<String>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    Ok(serde_json::to_string(&world.api::<K>().list(&ListParams::default()).await?)?)
}

/// Returns the values, plain and as encoded in a Secret; the operator's own key is among them. Shorter ones are words.
async fn values_of_secrets(world: &World) -> Result<BTreeSet<String>> {
    let mut values = BTreeSet::new();
    for secret in world.api::<Secret>().list(&ListParams::default()).await? {
        for value in secret.data.unwrap_or_default().into_values().filter(|value| value.0.len() >= 8) {
            values.insert(serde_json::to_value(&value)?.as_str().context("a value that is no text")?.to_owned());
            values.extend(String::from_utf8(value.0));
        }
    }
    Ok(values)
}

async fn replica_sets(world: &World, component: &str) -> Result<usize> {
    let sets = world.api::<ReplicaSet>().list(&ListParams::default()).await?;
    let of = format!("{NAME}-{component}-");
    Ok(sets.iter().filter(|set| set.name_any().starts_with(&of)).count())
}

fn config_hash(deployment: &Deployment) -> Option<&String> {
    let template = &deployment.spec.as_ref()?.template;
    template.metadata.as_ref()?.annotations.as_ref()?.get("orderflow.dev/config-hash")
}

fn names(deployments: &[Deployment]) -> Vec<String> {
    deployments.iter().map(ResourceExt::name_any).collect()
}
