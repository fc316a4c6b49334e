//! Ownership: a database records its shard and owner, a bucket its owner, and the resources decide about a topic. What
//! belongs to another resource is left alone, and the resource's own parts keep running.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::error::ProvideErrorMetadata;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::DeleteParams;
use orderflow_testbed::{eventually, postgres, wait::PATIENCE};
use serde_json::{Value, json};

use crate::support::{NAME, SECOND, World, merge};

#[tokio::test(flavor = "multi_thread")]
async fn swapped_dsns_are_detected_and_nothing_is_changed() -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    world.settled(&operator).await?;
    let before = Touchable::read(&world).await?;

    put_dsns(&world, [world.dsn(2), world.dsn(1)]).await?;
    let condition = world.wait_for("ShardsReady", "False", "ShardMismatch").await?;
    let message = condition["message"].as_str().context("no message")?;
    ensure!(message.contains("0 of 2") && message.contains("shard1: ") && message.contains("shard2: "), "{message}");
    world.wait_for("Ready", "False", "ShardMismatch").await?;
    world.settled(&operator).await?;
    before.require_untouched(&world).await?;
    world.wait_for("ProducerAvailable", "True", "Available").await?;

    put_dsns(&world, [world.dsn(1), world.dsn(2)]).await?;
    world.wait_for("Ready", "True", "Available").await?;
    before.require_untouched(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_annotation_gives_a_shards_database_to_another_shard() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.settled(&operator).await?;
    let before = Touchable::read(&world).await?;
    put_dsns(&world, [world.dsn(2), world.dsn(1)]).await?;
    world.wait_for("ShardsReady", "False", "ShardMismatch").await?;
    adopt(&world, NAME, NAME).await?;
    world.settled(&operator).await?;
    world.wait_for("ShardsReady", "False", "ShardMismatch").await?;
    before.require_untouched(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repointed_dsn_is_detected_and_nothing_is_changed() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.settled(&operator).await?;
    // The databases are provisioned for another owner.
    let others = [world.stack.dsn(1), world.stack.dsn(2)];
    let before = Touchable::read(&world).await?;
    let before_others = [contents(&others[0]).await?, contents(&others[1]).await?];
    for (case, dsn, reason) in [
        ("shard1's", world.dsn(1).to_owned(), "SameDatabase"),
        ("shard1's by another name", world.dsn(1).replace("127.0.0.1", "localhost"), "ShardMismatch"),
        ("the first shard of another owner", others[0].clone(), "ShardMismatch"),
        ("the second shard of another owner", others[1].clone(), "OwnedByAnother"),
    ] {
        world.put_secret("postgres-shard2", &[("dsn", &dsn)]).await?;
        let condition = world.wait_for("ShardsReady", "False", reason).await.context(case)?;
        let message = condition["message"].as_str().context("no message")?;
        ensure!(message.contains("1 of 2 shards are ready: shard2: "), "{case}: {message}");
        world.settled(&operator).await?;
        before.require_untouched(&world).await.context(case)?;
        ensure!([contents(&others[0]).await?, contents(&others[1]).await?] == before_others, "{case}: written to");
        // The next step is then another change of reason.
        world.put_secret("postgres-shard2", &[("dsn", world.dsn(2))]).await?;
        world.wait_for("ShardsReady", "True", "Provisioned").await.context(case)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_belongs_to_the_resource_that_had_it_first() -> Result<()> {
    // One shard is its own, so that a missing shard is not the reason why its producers are missing.
    let claim = |world: &World| {
        let mut shards = world.orderflow()["spec"]["shards"].take();
        shards[0]["dsnSecretRef"]["name"] = json!(format!("{SECOND}-shard1"));
        json!({ "shards": shards })
    };
    require_refused("ShardsReady", &["producer"], claim).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_belongs_to_the_resource_that_had_it_first() -> Result<()> {
    require_refused("BucketReady", &["producer"], |world| json!({ "bucket": { "name": world.bucket() } })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_belongs_to_the_resource_that_had_it_first() -> Result<()> {
    let claim = |world: &World| json!({ "topic": { "name": world.topic() } });
    require_refused("TopicReady", &["producer", "consumer"], claim).await
}

/// The topic of dead letters has the name of another resource's topic.
#[tokio::test(flavor = "multi_thread")]
async fn derived_topics_belong_to_the_topics_owner() -> Result<()> {
    let claim = |world: &World| json!({ "topic": { "name": format!("{}.dlq", world.topic()) } });
    require_refused("TopicReady", &["producer", "consumer"], claim).await
}

/// Two names of one Kafka would lead to two owners, whose consumers would each notify every user.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_belongs_to_the_first_resource_by_any_name_of_its_brokers() -> Result<()> {
    let claim = |world: &World| json!({ "topic": { "name": world.topic(), "bootstrapServers": alias(world) } });
    require_refused("TopicReady", &["producer", "consumer"], claim).await
}

#[tokio::test(flavor = "multi_thread")]
async fn derived_topics_belong_to_the_topics_owner_by_any_name_of_its_brokers() -> Result<()> {
    let claim = |world: &World| json!({ "topic": { "name": format!("{}.dlq", world.topic()), "bootstrapServers": alias(world) } });
    require_refused("TopicReady", &["producer", "consumer"], claim).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_topic_is_adopted_only_by_a_resource_that_says_so() -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    world.create(second(&world, &json!({ "topic": { "name": world.topic() } })).await?).await?;
    world.wait_for_named(SECOND, "TopicReady", "False", "OwnedByAnother").await?;
    world.wait_for_named(SECOND, "ShardsReady", "True", "Provisioned").await?;

    remove(&world, NAME).await?;
    world.reconcile_named(SECOND, &operator).await?;
    let condition = world.wait_for_named(SECOND, "TopicReady", "False", "OwnedByAnother").await?;
    require_names(&condition, &format!("{}/{NAME}", world.namespace))?;

    adopt(&world, SECOND, NAME).await?;
    world.wait_for_named(SECOND, "Ready", "True", "Available").await?;
    Ok(())
}

/// Users who can edit an OrderFlow choose the bucket, and must not reach those of the operator's own AWS account.
#[tokio::test(flavor = "multi_thread")]
async fn the_operators_aws_identity_is_only_for_the_buckets_in_its_settings() -> Result<()> {
    let world = World::with_localstack().await?;
    let s3 = world.stack.object_store();
    let _operator = world
        .operator_with(&[
            ("BUCKET_PATTERN", "payroll,operator-*-allowed"),
            ("AWS_ENDPOINT_URL_S3", &s3.endpoint()),
            ("AWS_ACCESS_KEY_ID", s3.access_key_id()),
            ("AWS_SECRET_ACCESS_KEY", s3.secret_access_key()),
        ])
        .await?;
    let bucket = |name: &str, endpoint: Option<String>| json!({ "name": name, "endpoint": endpoint, "credentialsSecretRef": null });
    let allowed = format!("{}-allowed", world.bucket());
    world.create(world.orderflow_with(&json!({ "spec": { "bucket": bucket(&world.bucket(), None) } }))).await?;
    let condition = world.wait_for("BucketReady", "False", "OwnIdentityRefused").await?;
    require_names(&condition, "--bucket-pattern")?;

    world.patch(json!({ "spec": { "bucket": bucket(&allowed, Some(s3.endpoint())) } })).await?;
    eventually("the endpoint to be refused", PATIENCE, async || {
        let condition = world.condition("BucketReady").await?;
        ensure!(condition["reason"] == "OwnIdentityRefused", "{condition}");
        require_names(&condition, "remove the endpoint")
    })
    .await?;
    let buckets = world.stack.s3().list_buckets().send().await?.buckets.unwrap_or_default();
    let made = buckets.iter().any(|found| found.name().is_some_and(|name| name.starts_with(&world.bucket())));
    ensure!(!made, "a bucket was made: {buckets:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_in_the_operators_settings_is_reached_with_its_identity() -> Result<()> {
    let world = World::with_localstack().await?;
    let s3 = world.stack.object_store();
    let _operator = world
        .operator_with(&[
            ("BUCKET_PATTERN", "operator-*"),
            ("AWS_ENDPOINT_URL_S3", &s3.endpoint()),
            ("AWS_ACCESS_KEY_ID", s3.access_key_id()),
            ("AWS_SECRET_ACCESS_KEY", s3.secret_access_key()),
        ])
        .await?;
    let bucket = json!({ "endpoint": null, "credentialsSecretRef": null });
    world.create(world.orderflow_with(&json!({ "spec": { "bucket": bucket } }))).await?;
    world.wait_for("BucketReady", "True", "Provisioned").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_with_objects_and_no_owner_is_left_alone() -> Result<()> {
    let world = World::with_localstack().await?;
    let s3 = world.stack.s3();
    s3.create_bucket().bucket(world.bucket()).send().await?;
    s3.put_object().bucket(world.bucket()).key("payroll.csv").send().await?;
    let _operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.wait_for("BucketReady", "False", "BucketNotEmpty").await?;
    let tags = s3.get_bucket_tagging().bucket(world.bucket()).send().await;
    ensure!(tags.is_err_and(|error| error.code() == Some("NoSuchTagSet")), "the bucket was tagged");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_resource_does_not_get_the_topic_of_a_younger_one() -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    let second = second(&world, &json!({})).await?;
    let topic = second["spec"]["topic"]["name"].clone();
    world.create(second).await?;
    world.wait_for_named(SECOND, "Ready", "True", "Available").await?;
    let before = Touchable::read(&world).await?;

    world.patch(json!({ "spec": { "topic": { "name": topic } } })).await?;
    let condition = world.wait_for("TopicReady", "False", "OwnedByAnother").await?;
    require_names(&condition, &format!("{}/{SECOND}", world.namespace))?;
    world.settled(&operator).await?;
    before.require_untouched(&world).await?;
    world.reconcile_named(SECOND, &operator).await?;
    world.wait_for_named(SECOND, "Ready", "True", "Available").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_data_is_adopted_by_a_resource_that_says_so() -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    remove(&world, NAME).await?;
    let left = [contents(world.dsn(1)).await?, contents(world.dsn(2)).await?];

    world.create(world.orderflow_with(&json!({ "metadata": { "name": "heir" } }))).await?;
    for kind in ["ShardsReady", "BucketReady"] {
        let condition = world.wait_for_named("heir", kind, "False", "OwnedByAnother").await?;
        require_names(&condition, &format!("{}/{NAME}", world.namespace))?;
    }
    world.reconcile_named("heir", &operator).await?;
    ensure!([contents(world.dsn(1)).await?, contents(world.dsn(2)).await?] == left, "adopted without the annotation");

    adopt(&world, "heir", NAME).await?;
    world.wait_for_named("heir", "Ready", "True", "Available").await?;
    require_owner(&world, "heir").await
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_adopted_only_from_the_named_owner() -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    remove(&world, NAME).await?;
    world.create(world.orderflow_with(&json!({ "metadata": { "name": "heir" } }))).await?;
    adopt(&world, "heir", "stranger").await?;
    for kind in ["ShardsReady", "BucketReady"] {
        world.wait_for_named("heir", kind, "False", "OwnedByAnother").await?;
    }
    world.reconcile_named("heir", &operator).await?;
    require_owner(&world, NAME).await
}

/// The form without an owner would take from any owner, for as long as it stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_without_an_owner_has_no_effect_and_the_new_form_is_reported() -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    let adopt = json!({ "metadata": { "annotations": { "orderflow.dev/adopt": "true" } } });
    world.patch(adopt.clone()).await?;
    eventually("the warning of a resource that is well", PATIENCE, async || {
        let ready = world.condition("Ready").await?;
        let message = ready["message"].as_str().unwrap_or_default();
        ensure!(ready["status"] == "True" && message.contains("orderflow.dev/adopt-from: NAMESPACE/NAME"), "{ready}");
        Ok(())
    })
    .await?;
    remove(&world, NAME).await?;
    let mut heir = world.orderflow_with(&json!({ "metadata": { "name": "heir" } }));
    merge(&mut heir, &adopt);
    world.create(heir).await?;
    for kind in ["ShardsReady", "BucketReady"] {
        let condition = world.wait_for_named("heir", kind, "False", "OwnedByAnother").await?;
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(message.contains("orderflow.dev/adopt-from: NAMESPACE/NAME"), "{condition}");
    }
    world.reconcile_named("heir", &operator).await?;
    require_owner(&world, NAME).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_resources_that_adopt_from_each_other_do_not_steal() -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    let topic = json!({ "topic": { "name": format!("{}-heir", world.topic()) } });
    world.create(world.orderflow_with(&json!({ "metadata": { "name": "heir" }, "spec": topic }))).await?;
    world.wait_for_named("heir", "ShardsReady", "False", "OwnedByAnother").await?;
    for (name, from) in [(NAME, "heir"), ("heir", NAME)] {
        adopt(&world, name, from).await?;
        let any = json!({ "metadata": { "annotations": { "orderflow.dev/adopt": "true" } } });
        world.patch_named(name, any).await?;
    }
    for _ in 0..2 {
        world.reconcile_named("heir", &operator).await?;
        world.reconcile_named(NAME, &operator).await?;
        require_owner(&world, NAME).await?;
    }
    let condition = world.wait_for_named("heir", "ShardsReady", "False", "OwnedByAnother").await?;
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(message.contains("still exists"), "{condition}");
    world.wait_for("Ready", "True", "Available").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_manifest_does_not_take_over_the_originals_databases() -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    remove(&world, NAME).await?;
    let annotations = json!({
        "orderflow.dev/adopt-from": format!("{}/{NAME}", world.namespace),
        "orderflow.dev/adopt": "true",
    });
    let of = |name: &str| world.orderflow_with(&json!({ "metadata": { "name": name, "annotations": annotations } }));
    world.create(of("heir")).await?;
    world.wait_for_named("heir", "Ready", "True", "Available").await?;
    world.create(of("copy")).await?;
    for kind in ["ShardsReady", "BucketReady"] {
        let condition = world.wait_for_named("copy", kind, "False", "OwnedByAnother").await?;
        require_names(&condition, &format!("{}/heir", world.namespace))?;
    }
    world.reconcile_named("copy", &operator).await?;
    require_owner(&world, "heir").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_resource_gets_its_former_data_back() -> Result<()> {
    let (world, _operator, _kubelet) = World::ready().await?;
    remove(&world, NAME).await?;
    let left = [contents(world.dsn(1)).await?, contents(world.dsn(2)).await?];
    world.create(world.orderflow()).await?;
    world.wait_for("Ready", "True", "Available").await?;
    ensure!([contents(world.dsn(1)).await?, contents(world.dsn(2)).await?] == left, "the databases were written to");
    Ok(())
}

/// Creates a second resource that claims what the first one has, and checks that it is refused: it reports so, without
/// `held`, and the first is unchanged.
async fn require_refused(kind: &str, held: &[&str], claim: impl Fn(&World) -> Value) -> Result<()> {
    let (world, operator, _kubelet) = World::ready().await?;
    world.settled(&operator).await?;
    let (before, before_owners) = (Touchable::read(&world).await?, owners(&world).await?);

    world.create(second(&world, &claim(&world)).await?).await?;
    let condition = world.wait_for_named(SECOND, kind, "False", "OwnedByAnother").await?;
    require_names(&condition, &format!("{}/{NAME}", world.namespace))?;
    world.wait_for_named(SECOND, "Ready", "False", "OwnedByAnother").await?;
    world.reconcile_named(SECOND, &operator).await?;
    for component in held {
        let found = world.api::<Deployment>().get_opt(&format!("{SECOND}-{component}")).await?;
        ensure!(found.is_none(), "the second {component} was made");
    }
    world.reconcile_named(NAME, &operator).await?;
    world.wait_for("Ready", "True", "Available").await?;
    before.require_untouched(&world).await?;
    ensure!(owners(&world).await? == before_owners, "{:?}", owners(&world).await?);
    Ok(())
}

async fn second(world: &World, changes: &Value) -> Result<Value> {
    let mut second = world.second().await?;
    merge(&mut second["spec"], changes);
    Ok(second)
}

/// Deletes a resource and waits until it is gone; its data outside of Kubernetes stays.
async fn remove(world: &World, name: &str) -> Result<()> {
    world.orderflows().delete(name, &DeleteParams::default()).await?;
    eventually(&format!("{name} to be gone"), PATIENCE, async || {
        ensure!(world.orderflows().get_opt(name).await?.is_none(), "it still exists");
        anyhow::Ok(())
    })
    .await
}

/// Returns another name of the world's Kafka.
fn alias(world: &World) -> String {
    world.stack.kafka().bootstrap().replace("127.0.0.1", "localhost")
}

async fn adopt(world: &World, name: &str, from: &str) -> Result<()> {
    let owner = format!("{}/{from}", world.namespace);
    world.patch_named(name, json!({ "metadata": { "annotations": { "orderflow.dev/adopt-from": owner } } })).await
}

/// Checks that databases and bucket belong to this resource.
async fn require_owner(world: &World, name: &str) -> Result<()> {
    let (owner, owners) = (format!("{}/{name}", world.namespace), owners(world).await?);
    ensure!(owners.iter().all(|found| *found == owner), "{owners:?}");
    Ok(())
}

async fn put_dsns(world: &World, dsns: [&str; 2]) -> Result<()> {
    world.put_secret("postgres-shard1", &[("dsn", dsns[0])]).await?;
    world.put_secret("postgres-shard2", &[("dsn", dsns[1])]).await
}

fn require_names(condition: &Value, owner: &str) -> Result<()> {
    let message = condition["message"].as_str().context("no message")?;
    ensure!(message.contains(owner), "{message:?} does not name {owner}");
    Ok(())
}

/// Returns the owners of the databases, in the order of the shards, and of the bucket.
async fn owners(world: &World) -> Result<[String; 3]> {
    let mut owners = [const { String::new() }; 3];
    for shard in [1, 2] {
        let mut connection = postgres::connect(world.dsn(shard)).await?;
        owners[shard - 1] = sqlx::query_scalar("SELECT owner FROM orderflow_meta").fetch_one(&mut connection).await?;
    }
    let tags = world.stack.s3().get_bucket_tagging().bucket(world.bucket()).send().await?;
    let owner =
        tags.tag_set().iter().find(|tag| tag.key() == "orderflow.dev/owner").context("a bucket without an owner")?;
    owner.value().clone_into(&mut owners[2]);
    Ok(owners)
}

/// The state that must not change when a DSN, a bucket or a topic belongs to another resource.
struct Touchable {
    databases: [String; 2],
    /// Generation and config hash of each Deployment.
    deployments: [(Option<i64>, Option<String>); 2],
}

impl Touchable {
    async fn read(world: &World) -> Result<Self> {
        let deployment = |deployment: &Deployment| {
            let template = deployment.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
            let annotations = template.and_then(|template| template.annotations.as_ref());
            let hash = annotations.and_then(|annotations| annotations.get("orderflow.dev/config-hash"));
            (deployment.metadata.generation, hash.cloned())
        };
        Ok(Self {
            databases: [contents(world.dsn(1)).await?, contents(world.dsn(2)).await?],
            deployments: [
                deployment(&world.deployment("producer").await?),
                deployment(&world.deployment("consumer").await?),
            ],
        })
    }

    async fn require_untouched(&self, world: &World) -> Result<()> {
        let now = Self::read(world).await?;
        ensure!(now.databases == self.databases, "{:#?}, before: {:#?}", now.databases, self.databases);
        ensure!(now.deployments == self.deployments, "{:?}, before: {:?}", now.deployments, self.deployments);
        Ok(())
    }
}

/// Returns the tables, and the marking with the transaction that wrote it last: even a write of the same text would
/// change it.
async fn contents(dsn: &str) -> Result<String> {
    const QUERY: &str = "
        SELECT (SELECT string_agg(format('%s %s %s', oid, relname, relkind), ', ' ORDER BY oid) FROM pg_class
                WHERE relnamespace = 'public'::regnamespace)
            || '; ' || (SELECT string_agg(xmin::text || ' ' || meta::text, ', ') FROM orderflow_meta AS meta)
            || '; ' || (SELECT string_agg(xmin::text, ', ' ORDER BY version) FROM _sqlx_migrations)";
    let mut connection = postgres::connect(dsn).await?;
    sqlx::query_scalar(QUERY).fetch_one(&mut connection).await.context("read a database")
}
