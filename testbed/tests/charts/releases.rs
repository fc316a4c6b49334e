//! Releases of the operator's chart: the objects of an installation, the changes of an upgrade, and what a removal
//! leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::{Api, api::PostParams};
use orderflow_testbed::{eventually, folder, helm::Release, wait::PATIENCE};
use serde_json::{Value, json};

use crate::{
    control_plane::kubernetes,
    files::{BACKING, OPERATOR, chart, example, objects, title},
    site::Site,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_creates_what_it_rendered() -> Result<()> {
    let site = Site::new().await?;
    let release = site.install_operator(json!({})).await?;
    ensure!(release.info.status == "deployed" && release.revision == 1, "{:?}", release.info);
    let found = site.everything().await?;
    for expected in [
        "Deployment/orderflow-operator",
        "NetworkPolicy/orderflow-operator",
        "Role/orderflow-operator-own",
        "Role/orderflow-operator-watched",
        "RoleBinding/orderflow-operator-own",
        "RoleBinding/orderflow-operator-watched",
        "Service/orderflow-operator-metrics",
        "ServiceAccount/orderflow-operator",
    ] {
        ensure!(found.contains(expected), "no {expected} in {found:?}");
    }
    // Only an operator that watches all namespaces needs permissions in the whole cluster.
    ensure!(!found.iter().any(|title| title.starts_with("Cluster")), "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_waits_ends_when_the_pods_are_ready() -> Result<()> {
    let site = Site::new().await?;
    let values = json!({ "crds": { "install": false }, "replicas": 2 }).to_string();
    let chart = chart(OPERATOR).display().to_string();
    let waiting = ["install", OPERATOR, &chart, "--set-json", &values, "--wait"];
    let late = site.helm.run(&[&waiting[..], &["--timeout=3s"]].concat()).await.err().context("no pod is ready")?;
    ensure!(format!("{late:#}").contains("Deployment/") && format!("{late:#}").contains("not ready"), "{late:#}");
    site.helm.uninstall(OPERATOR, &["--no-hooks"]).await?;

    let _kubelet = site.kubelet();
    site.helm.run(&[&waiting[..], &["--timeout=120s"]].concat()).await?;
    ensure!(
        site.get("apps/v1", "Deployment", OPERATOR).await?["status"]["availableReplicas"] == 2,
        "they are not ready"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_changes_only_the_fields_of_a_changed_value() -> Result<()> {
    let site = Site::new().await?;
    let before = contents(&site, &site.install_operator(json!({})).await?).await?;
    let after = contents(&site, &site.upgrade_operator(json!({ "log": "debug" })).await?).await?;
    ensure!(
        changed(&before, &after) == BTreeSet::from(["Deployment/orderflow-operator"]),
        "{:?}",
        changed(&before, &after)
    );

    // The same values again are no change, so no pod is replaced.
    let again = site.upgrade_operator(json!({ "log": "debug" })).await?;
    ensure!(again.revision == 3, "{again:?}");
    let again = contents(&site, &again).await?;
    ensure!(changed(&after, &again).is_empty(), "{:?}", changed(&after, &again));

    // Back to the first revision.
    site.helm.run(&["rollback", OPERATOR, "1"]).await?;
    let back = contents(&site, &site.helm.status(OPERATOR).await?).await?;
    ensure!(changed(&before, &back).is_empty(), "{:?}", changed(&before, &back));

    let without = json!({ "log": "info", "metrics": { "service": { "enabled": false } } });
    let without = contents(&site, &site.upgrade_operator(without).await?).await?;
    let gone = BTreeSet::from(["Service/orderflow-operator-metrics"]);
    ensure!(changed(&back, &without) == gone, "{:?}", changed(&back, &without));
    ensure!(!site.everything().await?.contains("Service/orderflow-operator-metrics"), "it still exists");
    Ok(())
}

/// No version was published yet, so this one with another number stands in for the former version. The test shows that
/// a change of the version alone changes no immutable field, such as the selectors of pods.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_from_another_version_of_the_chart_works() -> Result<()> {
    let site = Site::new().await?;
    for (name, values) in
        [(OPERATOR, json!({ "crds": { "install": false } })), (BACKING, json!({ "kafka": { "enabled": false } }))]
    {
        let before = site.helm.install(name, &version_before(name)?, &values).await?;
        let before = contents(&site, &before).await?;
        let upgraded = site.helm.upgrade(name, &chart(name), &values).await?;
        ensure!(upgraded.info.status == "deployed" && upgraded.revision == 2, "{:?}", upgraded.info);
        let after = contents(&site, &upgraded).await?;
        ensure!(before.keys().eq(after.keys()), "{:?} became {:?}", before.keys(), after.keys());
        for (title, object) in &after {
            let label = format!("{name}-{}", env!("CARGO_PKG_VERSION"));
            ensure!(object["metadata"]["labels"]["helm.sh/chart"] == label, "{title}: {object}");
        }
        if name == BACKING {
            // A restart loses all objects of LocalStack, and interrupts Postgres' clients.
            for title in ["StatefulSet/postgres-shard1", "Deployment/localstack"] {
                let template = |contents: &Contents| contents[title]["spec"]["template"].clone();
                ensure!(template(&before) == template(&after), "{title} restarts");
            }
        }
    }
    let images = site.get("apps/v1", "Deployment", OPERATOR).await?.to_string();
    ensure!(images.matches(":0.1.0\"").count() == 3 && !images.contains("0.0.9\""), "{images}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_leaves_nothing_of_the_operator() -> Result<()> {
    for values in [
        json!({}),
        json!({ "allNamespaces": true, "fullnameOverride": "watches-all", "replicas": 2 }),
        json!({ "metrics": { "serviceMonitor": { "enabled": true } } }),
    ] {
        let site = Site::new().await?;
        site.install_operator(values.clone()).await?;
        ensure!(site.everything().await?.len() > 7, "{values}: too few to be all");
        // Without a node nothing runs the hook's pod.
        site.helm.uninstall(OPERATOR, &["--no-hooks"]).await?;
        is_empty(&site).await.with_context(|| values.to_string())?;
        // The name is free again.
        site.install_operator(values).await?;
    }
    Ok(())
}

/// The recovery that its README describes if the hook cannot run.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_whose_hook_cannot_run_is_finished_without_it() -> Result<()> {
    let site = Site::new().await?;
    site.install_operator(json!({})).await?;
    let late = site.helm.uninstall(OPERATOR, &["--timeout=3s"]).await.err().context("no node runs the hook")?;
    ensure!(format!("{late:#}").contains("orderflow-operator-release"), "{late:#}");
    ensure!(site.everything().await?.contains("Deployment/orderflow-operator"), "the operator is gone already");
    site.helm.uninstall(OPERATOR, &["--no-hooks"]).await?;
    eventually("only the hook to be left", PATIENCE, async || {
        let left = site.everything().await?;
        ensure!(left.iter().all(|title| title.contains("/orderflow-operator-release")), "{left:?}");
        Ok(())
    })
    .await
}

/// All other tests' resources rely on this release, so all of it is in one test.
#[tokio::test(flavor = "multi_thread")]
async fn the_definition_is_upgraded_with_the_release_and_outlives_it() -> Result<()> {
    let site = Site::of_the_definition(kubernetes().await?).await?;
    let definition = ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "orderflows.orderflow.dev");
    let spec = async || anyhow::Ok(site.get(definition.0, definition.1, definition.2).await?["spec"].clone());
    let installed = spec().await?;
    let user_roles = BTreeSet::from(["ClusterRole/orderflow-edit".to_owned(), "ClusterRole/orderflow-view".to_owned()]);
    ensure!(site.everything().await?.is_superset(&user_roles), "{:?}", site.everything().await?);

    // Helm never upgrades what is in a chart's crds/, so this definition is a template. An older one may have had
    // another column.
    let older = copy(OPERATOR)?;
    let file = older.join("files/definition.yaml");
    let text = std::fs::read_to_string(&file)?;
    ensure!(text.matches("name: Shards\n").count() == 1, "no such column: {text}");
    std::fs::write(&file, text.replace("name: Shards\n", "name: Parts\n"))?;
    site.helm.upgrade(OPERATOR, &older, &json!({})).await?;
    ensure!(spec().await?.to_string().contains("\"Parts\""), "{}", spec().await?);
    site.helm.upgrade(OPERATOR, &chart(OPERATOR), &json!({})).await?;
    ensure!(spec().await? == installed, "{}", spec().await?);

    // A deleted definition would delete every OrderFlow.
    let orderflow = example("orderflow.yaml")?.remove(0);
    site.apply(&orderflow).await?;
    let uid = site.live(&orderflow).await?["metadata"]["uid"].clone();
    let output = site.helm.uninstall(OPERATOR, &["--no-hooks"]).await?;
    ensure!(output.contains("orderflows.orderflow.dev"), "the kept definition is not reported: {output}");
    ensure!(site.live(&orderflow).await?["metadata"]["uid"] == uid, "the resource was created again");
    eventually("all else to be gone", PATIENCE, async || {
        let left = site.everything().await?;
        let expected = ["CustomResourceDefinition/orderflows.orderflow.dev", "OrderFlow/orderflow"];
        ensure!(left.iter().map(String::as_str).eq(expected), "{left:?}");
        Ok(())
    })
    .await?;

    // The error of another release names the owner, and how to take over.
    let elsewhere = Site::new().await?;
    let refused = elsewhere.helm.install(OPERATOR, &chart(OPERATOR), &json!({})).await.err().context("two have it")?;
    let refused = format!("{refused:#}");
    for word in [&site.namespace, "crds.install=false", "kubectl annotate crd orderflows.orderflow.dev"] {
        ensure!(refused.contains(word), "{refused}");
    }
    ensure!(elsewhere.everything().await?.is_empty(), "{:?}", elsewhere.everything().await?);

    // The same release uses it again.
    site.helm.install(OPERATOR, &chart(OPERATOR), &json!({})).await?;
    ensure!(site.live(&orderflow).await?["metadata"]["uid"] == uid, "the resource was created again");
    ensure!(site.everything().await?.is_superset(&user_roles), "{:?}", site.everything().await?);
    Ok(())
}

/// The cluster's own roles `view` and `edit`, which the controller manager aggregates from ours.
#[tokio::test(flavor = "multi_thread")]
async fn the_roles_view_and_edit_include_orderflows() -> Result<()> {
    let site = Site::new().await?;
    for (user, role) in [("viewer", "view"), ("editor", "edit")] {
        site.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": { "name": user },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }],
        }))
        .await?;
    }
    for (user, verb, resource, expected) in [
        ("viewer", "get", "orderflows", true),
        ("viewer", "watch", "orderflows", true),
        ("viewer", "create", "orderflows", false),
        ("viewer", "get", "secrets", false),
        ("editor", "get", "orderflows", true),
        ("editor", "create", "orderflows", true),
        ("editor", "patch", "orderflows", true),
        ("editor", "delete", "orderflows", true),
        ("editor", "patch", "orderflows/status", false),
        ("nobody", "get", "orderflows", false),
    ] {
        let what = format!("{user} {verb} {resource}: {expected}");
        // A test that installs the definition's release again removes them for a moment.
        eventually(&what, PATIENCE, async || {
            ensure!(may(&site, user, verb, resource).await? == expected);
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn may(site: &Site, user: &str, verb: &str, resource: &str) -> Result<bool> {
    let group = if resource.starts_with("orderflows") { "orderflow.dev" } else { "" };
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let question: SubjectAccessReview = serde_json::from_value(json!({ "spec": {
        "user": user,
        "resourceAttributes": {
            "namespace": site.namespace, "verb": verb, "group": group, "resource": resource, "subresource": subresource,
        },
    }}))?;
    let api: Api<SubjectAccessReview> = Api::all(site.client.clone());
    let answer = api.create(&PostParams::default(), &question).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// The objects by `Kind/name`, without the fields that the API server and controllers set.
type Contents = BTreeMap<String, Value>;

/// Returns the content of each object of a release.
async fn contents(site: &Site, release: &Release) -> Result<Contents> {
    let mut found = Contents::new();
    for object in objects(&release.manifest)? {
        let mut live = site.live(&object).await?;
        let all = live.as_object_mut().context("no object")?;
        all.remove("status");
        let metadata = all.get_mut("metadata").and_then(Value::as_object_mut).context("no metadata")?;
        metadata.retain(|field, _| ["name", "namespace", "labels", "annotations", "uid"].contains(&field.as_str()));
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("deployment.kubernetes.io/revision");
        }
        found.insert(title(&object), live);
    }
    Ok(found)
}

/// Returns the objects that changed, are new or are gone.
fn changed<'a>(before: &'a Contents, after: &'a Contents) -> BTreeSet<&'a str> {
    let all = before.keys().chain(after.keys());
    all.filter(|title| before.get(*title) != after.get(*title)).map(String::as_str).collect()
}

async fn is_empty(site: &Site) -> Result<()> {
    eventually("nothing to be left", PATIENCE, async || {
        let left = site.everything().await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

/// Returns a copy of a chart with another version.
fn version_before(name: &str) -> Result<PathBuf> {
    let copy = copy(name)?;
    let file = copy.join("Chart.yaml");
    let text = std::fs::read_to_string(&file)?;
    let older = text.replace(env!("CARGO_PKG_VERSION"), "0.0.9");
    ensure!(older.matches("0.0.9").count() == 2, "{older}");
    std::fs::write(&file, older)?;
    Ok(copy)
}

/// Returns a copy of a chart of this repository, to be changed.
fn copy(name: &str) -> Result<PathBuf> {
    let copies = folder::for_test_process()?.join("charts").join(uuid::Uuid::now_v7().to_string());
    copy_folder(&chart(name), &copies)?;
    Ok(copies)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            std::fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(())
}
