//! Changes by hand to the children: the operator restores its own fields, keeps fields that others add, and never
//! touches an object that it does not own.

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
async fn changes_to_the_operators_fields_are_reverted() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(everything(&world)).await?;
    children_exist(&world).await?;
    let removed = Value::Null;
    for (kind, name, field, value) in [
        ("Deployment", "main-producer", "/spec/template/spec/containers/0/image", json!("example.com/another:1")),
        ("Deployment", "main-producer", "/spec/template/spec/containers/0/env/0/value", json!("1")),
        ("Deployment", "main-producer", "/metadata/labels/app.kubernetes.io~1managed-by", json!("another")),
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
async fn fields_that_others_add_stay() -> Result<()> {
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
    let other = PatchParams::apply("another-manager");
    world.objects("Deployment").patch("main-producer", &other, &Patch::Apply(variable)).await?;
    world.settled(&operator).await?;
    let writes = world.writes_to_children()?;
    ensure!(writes.len() == before, "the operator reacted to a field that it does not own: {:?}", &writes[before..]);

    // It also survives the next apply.
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
async fn a_child_that_is_deleted_slowly_comes_back_once_it_is_gone() -> Result<()> {
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
    no_reconcile_is_left(&world).await?;
    services.patch("main-producer", &PatchParams::default(), &hold(Value::Null)).await?;
    eventually("another Service", PATIENCE, async || {
        ensure!(services.get("main-producer").await?.uid() != before, "still the old one");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_while_no_operator_ran_are_reverted_by_the_next() -> Result<()> {
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
async fn a_child_that_is_no_longer_wanted_is_deleted() -> Result<()> {
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
    // It comes back with the spec.
    world.patch(json!({ "spec": { "networkPolicy": { "enabled": true } } })).await?;
    exists(&world, "NetworkPolicy", "main-producer").await?;
    exists(&world, "NetworkPolicy", "main-consumer").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_without_the_operator_as_its_owner_is_left() -> Result<()> {
    let world = World::new().await?;
    let theirs = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        // It has our label, so that the operator sees it.
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
async fn an_object_with_a_childs_name_is_reported_and_left_alone() -> Result<()> {
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
        ensure!(message.starts_with(&format!("{object} exists and does not belong to this resource")), "{condition}");
    }
    world.wait_for("Ready", "False", "ChildConflict").await?;
    for _ in 0..3 {
        world.force_reconcile(&operator).await?;
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
    // A Deployment's own controller writes its status; no other field has changed.
    let now = world.objects("Deployment").get("main-consumer").await?;
    ensure!((now.uid(), now.metadata.generation) == (deployment.uid(), Some(1)), "{now:?}");
    let writes = world.writes_to_children()?;
    let touched =
        |write: &&String| write.contains(" services/main-producer ") || write.contains(" deployments/main-consumer ");
    ensure!(!writes.iter().any(|write| touched(&write)), "{writes:?}");

    world.objects("Service").delete("main-producer", &DeleteParams::default()).await?;
    world.objects("Deployment").delete("main-consumer", &DeleteParams::default()).await?;
    is_gone(&world, "Deployment", "main-consumer").await?;
    world.force_reconcile(&operator).await?;
    world.wait_for("Ready", "True", "Available").await?;
    world.settled(&operator).await
}

/// The operator is delayed between its check, which finds no such object, and its first write of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_another_client_creates_first_is_not_taken_over() -> Result<()> {
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

/// The operator is delayed between its apply and the requests that follow it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_right_after_an_apply_is_reverted() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator_with(&[("FAILPOINTS", "operator::after-apply=return")]).await?;
    world.create(world.orderflow()).await?;
    let label = "/metadata/labels/app.kubernetes.io~1managed-by";
    eventually("the operator to apply the NetworkPolicy", PATIENCE, async || {
        let requests = world.requests()?;
        let applied = requests.iter().any(|request| request.starts_with("patch networkpolicies/main-producer "));
        ensure!(applied, "{requests:?}");
        Ok(())
    })
    .await?;
    change(&world, "NetworkPolicy", "main-producer", label, &Value::Null).await?;
    let failpoint = format!("{}/failpoints/operator::after-apply", operator.admin_url()?);
    http::client().put(failpoint).body("off").send().await?.error_for_status()?;
    eventually("the label to be put right", PATIENCE, async || {
        let now = field_of(&world, "NetworkPolicy", "main-producer", label).await?;
        ensure!(now == "orderflow-operator", "{now}");
        Ok(())
    })
    .await?;
    world.settled(&operator).await
}

/// A field that is no longer applied disappears only if no other manager, such as the one of the creation, owns it too.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_owns_created_fields_by_apply_alone() -> Result<()> {
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
async fn a_child_without_its_owner_reference_is_left_alone() -> Result<()> {
    let world = World::new().await?;
    let operator = world.operator().await?;
    world.create(world.orderflow()).await?;
    world.deployments_exist().await?;
    world.settled(&operator).await?;
    no_reconcile_is_left(&world).await?;
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
async fn a_new_image_in_the_spec_rolls_its_deployment() -> Result<()> {
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
async fn a_new_operator_rolls_out_its_default_image() -> Result<()> {
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

/// Returns a resource that needs each kind of child.
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
        ensure!(world.objects(kind).get_opt(name).await?.is_none(), "it still exists");
        Ok(())
    })
    .await
}

/// Waits until a settled resource is reconciled only after a change. A new generation that requires no write is
/// observed by the last reconcile that waited.
async fn no_reconcile_is_left(world: &World) -> Result<()> {
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

/// Sets a field of a child, or removes it (null), under another field manager. Returns the new object.
async fn change(world: &World, kind: &str, name: &str, field: &str, value: &Value) -> Result<Value> {
    let api = world.objects(kind);
    // Controllers write too, and the second writer must read again.
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
        let other = PostParams { field_manager: Some("another-manager".to_owned()), ..PostParams::default() };
        let changed = serde_json::to_value(api.replace(name, &other, &object).await?)?;
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
