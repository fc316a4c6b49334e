//! What people do to the children by hand: what is ours is put right, what they set beside it stays theirs, and an object that
//! is not ours is never touched.

use anyhow::{Context, Result, ensure};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use orderflow_testbed::{Service, eventually, http, wait::PATIENCE};
use serde_json::{Value, json};

use crate::support::{NAME, World};

/// All children of a resource that has [`everything`].
const CHILDREN: [(&str, &str); 11] = [
    ("NetworkPolicy", "main-producer"),
    ("ServiceAccount", "main-producer"),
    ("Service", "main-producer"),
    ("Service", "main-internal"),
    ("PodDisruptionBudget", "main-producer"),
    ("Deployment", "main-producer"),
    ("HorizontalPodAutoscaler", "main-producer"),
    ("NetworkPolicy", "main-consumer"),
    ("ServiceAccount", "main-consumer"),
    ("PodDisruptionBudget", "main-consumer"),
    ("Deployment", "main-consumer"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_changes_of_ours_is_put_right() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(everything(&world)).await?;
    children_exist(&world).await?;
    let removed = Value::Null;
    for (kind, name, field, value) in [
        ("Deployment", "main-producer", "/spec/template/spec/containers/0/image", json!("example.com/another:1")),
        ("Deployment", "main-producer", "/spec/template/spec/containers/0/env/0/value", json!("1")),
        ("Deployment", "main-producer", "/metadata/labels/app.kubernetes.io~1managed-by", json!("somebody")),
        ("Deployment", "main-consumer", "/spec/replicas", json!(5)),
        ("Deployment", "main-consumer", "/spec/template/spec/containers/0/ports/0/containerPort", json!(81)),
        ("Service", "main-producer", "/spec/ports/0/port", json!(81)),
        ("Service", "main-producer", "/metadata/labels/app.kubernetes.io~1managed-by", removed.clone()),
        ("PodDisruptionBudget", "main-consumer", "/spec/maxUnavailable", json!(0)),
        ("HorizontalPodAutoscaler", "main-producer", "/spec/maxReplicas", json!(50)),
        ("NetworkPolicy", "main-consumer", "/spec/egress", json!([{}])),
        ("NetworkPolicy", "main-producer", "/metadata/labels/app.kubernetes.io~1instance", removed.clone()),
        ("ServiceAccount", "main-producer", "/metadata/annotations/example.com~1role", json!("another")),
        ("ServiceAccount", "main-consumer", "/automountServiceAccountToken", json!(true)),
    ] {
        let before = field_of(&world, kind, name, field).await?;
        let changed = change(&world, kind, name, field, &value).await?;
        ensure!(changed != before, "{kind} {name}: {field} was not changed");
        eventually(&format!("{kind} {name}, {field} to be put right"), PATIENCE, async || {
            let now = field_of(&world, kind, name, field).await?;
            ensure!(now == before, "{now} is not {before}");
            Ok(())
        })
        .await?;
    }
    world.settled(&operator).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_sets_beside_ours_stays() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.settled(&operator).await?;

    let before = world.writes_to_children()?.len();
    let note = json!({ "metadata": { "annotations": { "example.com/note": "theirs" } } });
    world.objects("Service").patch("main-producer", &PatchParams::default(), &Patch::Merge(note)).await?;
    let variable = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "spec": { "template": { "spec": { "containers": [
            { "name": "producer", "env": [{ "name": "THEIRS", "value": "1" }] },
        ] } } },
    });
    let somebody = PatchParams::apply("somebody");
    world.objects("Deployment").patch("main-producer", &somebody, &Patch::Apply(variable)).await?;
    world.settled(&operator).await?;
    let writes = world.writes_to_children()?;
    ensure!(writes.len() == before, "what is not ours was acted on: {:?}", &writes[before..]);

    // And it outlives that we apply again.
    change(&world, "Service", "main-producer", "/spec/ports/0/port", &json!(81)).await?;
    world.patch(json!({ "spec": { "producer": { "image": "example.com/producer:2" } } })).await?;
    world
        .deployment_that("producer", "of the new image", |deployment| image(deployment).contains("producer:2"))
        .await?;
    world.settled(&operator).await?;
    let port = field_of(&world, "Service", "main-producer", "/spec/ports/0/port").await?;
    let note = field_of(&world, "Service", "main-producer", "/metadata/annotations/example.com~1note").await?;
    ensure!(port == 8080 && note == "theirs", "port {port}, note {note}");
    let variables =
        field_of(&world, "Deployment", "main-producer", "/spec/template/spec/containers/0/env").await?.to_string();
    ensure!(variables.contains("THEIRS") && variables.contains("PG_SHARD1_DSN"), "{variables}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_deleted_comes_back() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(everything(&world)).await?;
    children_exist(&world).await?;
    for (kind, name) in CHILDREN {
        let api = world.objects(kind);
        let before = api.get(name).await?.uid();
        api.delete(name, &DeleteParams::default()).await?;
        eventually(&format!("another {kind} {name}"), PATIENCE, async || {
            let now = api.get(name).await?;
            ensure!(now.uid() != before && now.metadata.deletion_timestamp.is_none(), "still the old one");
            Ok(())
        })
        .await?;
    }
    world.settled(&operator).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_slow_to_go_comes_back_once_it_is_gone() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    let services = world.objects("Service");
    let before = services.get("main-producer").await?.uid();
    let hold = |finalizers: Value| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
    services.patch("main-producer", &PatchParams::default(), &hold(json!(["example.com/hold"]))).await?;
    services.delete("main-producer", &DeleteParams::default()).await?;
    world.settled(&operator).await?;
    no_look_is_left(&world).await?;
    services.patch("main-producer", &PatchParams::default(), &hold(Value::Null)).await?;
    eventually("another Service", PATIENCE, async || {
        ensure!(services.get("main-producer").await?.uid() != before, "still the old one");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_no_operator_ran_is_put_right_by_the_next() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.settled(&operator).await?;
    operator.stop().await?;
    change(&world, "Service", "main-producer", "/spec/ports/0/port", &json!(81)).await?;
    world.objects("PodDisruptionBudget").delete("main-consumer", &DeleteParams::default()).await?;

    let next = world.operator().await?;
    eventually("the port to be put right", PATIENCE, async || {
        let port = field_of(&world, "Service", "main-producer", "/spec/ports/0/port").await?;
        ensure!(port == 8080, "{port}");
        Ok(())
    })
    .await?;
    exists(&world, "PodDisruptionBudget", "main-consumer").await?;
    world.settled(&next).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_not_wanted_any_more_is_deleted() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(everything(&world)).await?;
    children_exist(&world).await?;
    world
        .patch(json!({ "spec": {
            "networkPolicy": { "enabled": false },
            "producer": { "autoscaling": null, "replicas": 2 },
        }}))
        .await?;
    for (kind, name) in [
        ("NetworkPolicy", "main-producer"),
        ("NetworkPolicy", "main-consumer"),
        ("HorizontalPodAutoscaler", "main-producer"),
    ] {
        is_gone(&world, kind, name).await?;
    }
    world.settled(&operator).await?;
    for (kind, name) in
        CHILDREN.into_iter().filter(|(kind, _)| !matches!(*kind, "NetworkPolicy" | "HorizontalPodAutoscaler"))
    {
        exists(&world, kind, name).await?;
    }
    // And it comes back with the wish.
    world.patch(json!({ "spec": { "networkPolicy": { "enabled": true } } })).await?;
    exists(&world, "NetworkPolicy", "main-producer").await?;
    exists(&world, "NetworkPolicy", "main-consumer").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_neither_wanted_nor_ours_is_left() -> Result<()> {
    let world = World::new().await?;
    let theirs = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        // With our label, so that the operator sees it.
        "metadata": { "name": "main-consumer", "labels": { "app.kubernetes.io/managed-by": "orderflow-operator" } },
        "spec": { "podSelector": {} },
    });
    let before = by_hand(&world.objects("NetworkPolicy"), theirs).await?;
    let operator = world.operator().await?;
    world.create(world.orderflow_with(&json!({ "spec": { "networkPolicy": { "enabled": false } } }))).await?;
    world.deployments_exist().await?;
    world.settled(&operator).await?;
    let now = world.objects("NetworkPolicy").get("main-consumer").await?;
    ensure!(now == before, "{now:?} is not {before:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_a_childs_name_is_named_and_left_alone_until_it_is_gone() -> Result<()> {
    let world = World::new().await?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "main-producer" },
        "spec": { "ports": [{ "port": 1 }] },
    });
    let service = by_hand(&world.objects("Service"), service).await?;
    let labels = json!({ "app": "theirs" });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "main-consumer" },
        "spec": {
            "replicas": 0,
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "theirs", "image": "theirs:1" }] },
            },
        },
    });
    let deployment = by_hand(&world.objects("Deployment"), deployment).await?;

    let operator = world.operator().await?;
    let _kubelet = world.kubelet();
    world.create(world.orderflow()).await?;
    for (condition, object) in
        [("ProducerAvailable", "Service main-producer"), ("ConsumerAvailable", "Deployment main-consumer")]
    {
        let condition = world.wait_for(condition, "False", "ChildConflict").await?;
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(message.starts_with(&format!("{object} exists and is not this resource's")), "{condition}");
    }
    world.wait_for("Ready", "False", "ChildConflict").await?;
    for _ in 0..3 {
        world.force_a_look(&operator).await?;
    }
    let events = world.events().await?;
    for object in ["Service main-producer", "Deployment main-consumer"] {
        let warnings = events
            .iter()
            .filter(|(kind, reason, note)| kind == "Warning" && reason == "ChildConflict" && note.contains(object));
        ensure!(warnings.count() == 1, "not one warning of {object}: {events:?}");
    }
    let now = world.objects("Service").get("main-producer").await?;
    ensure!(now == service, "{now:?} is not {service:?}");
    // Its own controller writes a Deployment's status, and nobody has written anything else.
    let now = world.objects("Deployment").get("main-consumer").await?;
    ensure!((now.uid(), now.metadata.generation) == (deployment.uid(), Some(1)), "{now:?}");
    let writes = world.writes_to_children()?;
    let touched =
        |write: &&String| write.contains(" services/main-producer ") || write.contains(" deployments/main-consumer ");
    ensure!(!writes.iter().any(|write| touched(&write)), "{writes:?}");

    world.objects("Service").delete("main-producer", &DeleteParams::default()).await?;
    world.objects("Deployment").delete("main-consumer", &DeleteParams::default()).await?;
    is_gone(&world, "Deployment", "main-consumer").await?;
    world.force_a_look(&operator).await?;
    world.wait_for("Ready", "True", "Available").await?;
    world.settled(&operator).await
}

/// The operator is held up between the look, which finds no such object, and its first write of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_somebody_makes_meanwhile_is_not_taken_over() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator_with(&[("FAILPOINTS", "operator::before-create=return")]).await?;
    world.create(world.orderflow()).await?;
    eventually("the operator to find no NetworkPolicy", PATIENCE, async || {
        let requests = world.requests()?;
        let asked = requests.iter().any(|request| request == "get networkpolicies/main-producer 404");
        ensure!(asked, "{requests:?}");
        Ok(())
    })
    .await?;
    let theirs = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "main-producer" },
        "spec": { "podSelector": {} },
    });
    let before = by_hand(&world.objects("NetworkPolicy"), theirs).await?;
    let failpoint = format!("{}/failpoints/operator::before-create", operator.admin_url()?);
    http::client().put(failpoint).body("off").send().await?.error_for_status()?;

    let condition = world.wait_for("ProducerAvailable", "False", "ChildConflict").await?;
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("NetworkPolicy main-producer exists"), "{condition}");
    let now = world.objects("NetworkPolicy").get("main-producer").await?;
    ensure!(now == before, "{now:?} is not {before:?}");
    Ok(())
}

/// A field that is applied no more goes only if nobody else, such as the creation, claims it too.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_creates_it_holds_by_apply_alone() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(everything(&world)).await?;
    children_exist(&world).await?;
    world.settled(&operator).await?;
    for (kind, name) in CHILDREN {
        let child = world.objects(kind).get(name).await?;
        let ours: Vec<_> = child
            .managed_fields()
            .iter()
            .filter(|entry| entry.manager.as_deref() == Some("orderflow-operator"))
            .map(|entry| entry.operation.as_deref())
            .collect();
        ensure!(ours == [Some("Apply")], "{kind} {name}: {ours:?}");
    }
    let created = world.requests()?.into_iter().filter(|request| request.starts_with("create ")).count();
    ensure!(created >= CHILDREN.len(), "{created} objects were created: {:?}", world.requests()?);

    let annotation = "/metadata/annotations/example.com~1role";
    ensure!(field_of(&world, "ServiceAccount", "main-producer", annotation).await? == "orders", "no annotation");
    let none = json!({ "spec": { "producer": { "serviceAccount": { "annotations": { "example.com/role": null } } } } });
    world.patch(none).await?;
    eventually("the annotation to go", PATIENCE, async || {
        let now = field_of(&world, "ServiceAccount", "main-producer", annotation).await?;
        ensure!(now.is_null(), "{now}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_whose_owner_is_taken_away_is_not_ours_any_more() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.settled(&operator).await?;
    no_look_is_left(&world).await?;
    change(&world, "NetworkPolicy", "main-consumer", "/metadata/ownerReferences", &Value::Null).await?;
    let before = world.objects("NetworkPolicy").get("main-consumer").await?;
    let condition = world.wait_for("ConsumerAvailable", "False", "ChildConflict").await?;
    let message = condition["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("NetworkPolicy main-consumer exists"), "{condition}");
    world.settled(&operator).await?;
    let now = world.objects("NetworkPolicy").get("main-consumer").await?;
    ensure!(now == before, "{now:?} is not {before:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_in_the_spec_rolls_the_deployment_that_it_is_for() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.settled(&operator).await?;
    let before = world.deployment("producer").await?.metadata.generation;
    world.patch(json!({ "spec": { "consumer": { "image": "example.com/consumer:2" } } })).await?;
    let is_new = |deployment: &_| image(deployment) == "example.com/consumer:2";
    world.deployment_that("consumer", "of the new image", is_new).await?;
    world.settled(&operator).await?;
    ensure!(world.deployment("producer").await?.metadata.generation == before, "the producers' Deployment changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_operator_brings_its_image_to_who_names_none() -> Result<()> {
    let world = World::new().await?;
    let images = |version: &str| ["producer", "consumer"].map(|component| format!("example.com/{component}:{version}"));
    let [producer, consumer] = images("1");
    let operator = world.operator_with(&[("PRODUCER_IMAGE", &producer), ("CONSUMER_IMAGE", &consumer)]).await?;
    world.create(world.orderflow()).await?;
    for (component, first) in [("producer", &producer), ("consumer", &consumer)] {
        world.deployment_that(component, "of the first image", |deployment| image(deployment) == *first).await?;
    }
    world.settled(&operator).await?;
    operator.stop().await?;
    let before = world.deployment("consumer").await?.metadata.generation;

    let [producer, _] = images("2");
    let operator = world.operator_with(&[("PRODUCER_IMAGE", &producer), ("CONSUMER_IMAGE", &consumer)]).await?;
    world.deployment_that("producer", "of the new image", |deployment| image(deployment) == producer).await?;
    world.settled(&operator).await?;
    ensure!(world.deployment("consumer").await?.metadata.generation == before, "the consumers' Deployment changed");
    Ok(())
}

/// A resource that needs each kind of child.
fn everything(world: &World) -> Value {
    world.orderflow_with(&json!({ "spec": { "producer": {
        "replicas": null,
        "autoscaling": { "min": 2, "max": 5 },
        "serviceAccount": { "annotations": { "example.com/role": "orders" } },
    }}}))
}

async fn children_exist(world: &World) -> Result<()> {
    for (kind, name) in CHILDREN {
        exists(world, kind, name).await?;
    }
    Ok(())
}

async fn exists(world: &World, kind: &str, name: &str) -> Result<()> {
    eventually(&format!("{kind} {name}"), PATIENCE, async || world.objects(kind).get(name).await.map(drop)).await
}

async fn is_gone(world: &World, kind: &str, name: &str) -> Result<()> {
    eventually(&format!("no {kind} {name}"), PATIENCE, async || {
        ensure!(world.objects(kind).get_opt(name).await?.is_none(), "it is there");
        Ok(())
    })
    .await
}

/// Of a settled resource: after this it is looked at only if something changes. A new generation, for which nothing has to be
/// written, is seen by the last look that waited.
async fn no_look_is_left(world: &World) -> Result<()> {
    world.patch(json!({ "spec": { "topic": { "replicationFactor": 1 } } })).await?;
    eventually("the second generation to be seen", PATIENCE, async || {
        let status = world.status(NAME).await?;
        ensure!(status["observedGeneration"] == 2, "{status}");
        Ok(())
    })
    .await
}

async fn field_of(world: &World, kind: &str, name: &str, field: &str) -> Result<Value> {
    let object = serde_json::to_value(world.objects(kind).get(name).await?)?;
    Ok(object.pointer(field).cloned().unwrap_or_default())
}

/// Sets a field of a child, or removes it (null), as somebody who is not the operator. What it then was.
async fn change(world: &World, kind: &str, name: &str, field: &str, value: &Value) -> Result<Value> {
    let api = world.objects(kind);
    // Controllers write too, and who comes second must look again.
    eventually(&format!("{kind} {name} to be changed"), PATIENCE, async || {
        let mut object = serde_json::to_value(api.get(name).await?)?;
        let (parent, last) = field.rsplit_once('/').context("no field")?;
        let parent =
            object.pointer_mut(parent).and_then(Value::as_object_mut).context("the field's parent is missing")?;
        let last = last.replace("~1", "/");
        if value.is_null() {
            parent.remove(&last);
        } else {
            parent.insert(last, value.clone());
        }
        let object: DynamicObject = serde_json::from_value(object)?;
        let somebody = PostParams { field_manager: Some("somebody".to_owned()), ..PostParams::default() };
        let changed = serde_json::to_value(api.replace(name, &somebody, &object).await?)?;
        anyhow::Ok(changed.pointer(field).cloned().unwrap_or_default())
    })
    .await
}

async fn by_hand(api: &Api<DynamicObject>, object: Value) -> Result<DynamicObject> {
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

fn image(deployment: &k8s_openapi::api::apps::v1::Deployment) -> String {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    pod.and_then(|pod| pod.containers.first()?.image.clone()).unwrap_or_default()
}
