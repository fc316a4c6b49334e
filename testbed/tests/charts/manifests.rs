//! The manifests of the charts, over the whole table of values: the API server accepts them, the pods satisfy Pod
//! Security, and no manifest shows a secret.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::ByteString;
use orderflow_testbed::helm::Release;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{
    control_plane::has_strimzi,
    files::{BACKING, MONITORING, OPERATOR, chart, objects, pod_template, repository, title},
    site::Site,
    values,
};

/// The number of Helms that run at the same time.
const AT_ONCE: usize = 4;

/// A case of the table, and its manifests.
struct Rendered {
    case: &'static str,
    objects: Vec<Value>,
    notes: String,
}

/// Renders the operator's chart for all cases, as in a cluster without a release.
async fn operator() -> Result<&'static [Rendered]> {
    static RENDERED: OnceCell<Vec<Rendered>> = OnceCell::const_new();
    let rendered = RENDERED.get_or_try_init(async || {
        let site = Site::new().await?;
        let (site, chart) = (&site, &chart(OPERATOR));
        stream::iter(values::operator())
            .map(|(case, values)| async move { read(case, &site.helm.render_alone(OPERATOR, chart, &values).await?) })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    });
    Ok(rendered.await?)
}

/// Renders the chart of the backing services for all cases whose kinds this cluster has.
async fn backing() -> Result<&'static [Rendered]> {
    static RENDERED: OnceCell<Vec<Rendered>> = OnceCell::const_new();
    let rendered = RENDERED.get_or_try_init(async || {
        let site = Site::new().await?;
        let (site, chart, strimzi) = (&site, &chart(BACKING), has_strimzi("Kafka of orderflow-backing")?);
        stream::iter(values::backing().into_iter().filter(|(_, values)| strimzi || !values::needs_strimzi(values)))
            .map(|(case, values)| async move { read(case, &site.helm.render(BACKING, chart, &values).await?) })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    });
    Ok(rendered.await?)
}

/// Renders the chart of the monitoring for all cases.
async fn monitoring() -> Result<&'static [Rendered]> {
    static RENDERED: OnceCell<Vec<Rendered>> = OnceCell::const_new();
    let rendered = RENDERED.get_or_try_init(async || {
        let site = Site::new().await?;
        let (site, chart) = (&site, &chart(MONITORING));
        stream::iter(values::monitoring())
            .map(|(case, values)| async move { read(case, &site.helm.render(MONITORING, chart, &values).await?) })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    });
    Ok(rendered.await?)
}

fn read(case: &'static str, release: &Release) -> Result<Rendered> {
    Ok(Rendered { case, objects: objects(&release.manifests()).context(case)?, notes: release.info.notes.clone() })
}

async fn every() -> Result<impl Iterator<Item = &'static Rendered>> {
    Ok(operator().await?.iter().chain(backing().await?).chain(monitoring().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_accepts_all_that_the_operators_chart_renders() -> Result<()> {
    accepts(operator().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_accepts_all_that_the_chart_of_the_backing_services_renders() -> Result<()> {
    accepts(backing().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_accepts_all_that_the_chart_of_the_monitoring_renders() -> Result<()> {
    accepts(monitoring().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_links_to_the_runbook_can_be_set() -> Result<()> {
    let rendered = monitoring().await?.iter().find(|rendered| rendered.case == "everything else").context("no case")?;
    let text: String = rendered.objects.iter().map(ToString::to_string).collect();
    ensure!(text.contains("https://docs.example.com/runbook.html#"), "the address is not used");
    ensure!(!text.contains("orderflow.dev/runbook"), "the default address is left");
    Ok(())
}

async fn accepts(rendered: &'static [Rendered]) -> Result<()> {
    let site = &Site::new().await?;
    stream::iter(distinct(rendered))
        .map(|(case, object)| async move { site.dry_run(object).await.context(case) })
        .buffer_unordered(8)
        .try_collect()
        .await
}

/// Returns each object once, with the first case that has it.
fn distinct(rendered: &'static [Rendered]) -> Vec<(&'static str, &'static Value)> {
    let mut seen = BTreeSet::new();
    let all = rendered.iter().flat_map(|rendered| rendered.objects.iter().map(|object| (rendered.case, object)));
    all.filter(|(_, object)| seen.insert(object.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_namespace_accepts_each_pod_of_the_operators_chart() -> Result<()> {
    takes_the_pods("restricted", operator().await?, &["Deployment", "Job", "Pod"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_baseline_namespace_accepts_each_pod_of_the_backing_services() -> Result<()> {
    takes_the_pods("baseline", backing().await?, &["Deployment", "StatefulSet"]).await
}

async fn takes_the_pods(level: &str, rendered: &'static [Rendered], kinds: &[&str]) -> Result<()> {
    let site = Site::enforcing(level).await?;
    let mut found = BTreeSet::new();
    for (case, object) in distinct(rendered) {
        if let Some(template) = pod_template(object) {
            site.dry_run_pod(&template).await.with_context(|| format!("{case}: {}", title(object)))?;
            found.insert(object["kind"].as_str().unwrap_or_default());
        }
    }
    ensure!(found.iter().eq(kinds), "pods of {found:?}, not of {kinds:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_object_has_the_recommended_labels() -> Result<()> {
    for Rendered { case, objects, .. } in every().await? {
        for object in objects {
            let labels = &object["metadata"]["labels"];
            for label in ["name", "instance", "part-of", "managed-by"] {
                let key = format!("app.kubernetes.io/{label}");
                ensure!(labels[&key].is_string(), "{case}: {} has no label {key}", title(object));
            }
            ensure!(labels["app.kubernetes.io/managed-by"] == "Helm", "{case}: {}", title(object));
            ensure!(labels["app.kubernetes.io/part-of"] == "orderflow", "{case}: {}", title(object));
            ensure!(labels["helm.sh/chart"].is_string(), "{case}: {} does not name its chart", title(object));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_namespaced_object_names_its_namespace() -> Result<()> {
    for Rendered { case, objects, .. } in every().await? {
        for object in objects {
            let kind = object["kind"].as_str().unwrap_or_default();
            let in_the_cluster = kind.starts_with("Cluster") || kind == "CustomResourceDefinition";
            // `helm template | kubectl apply` would put it into another namespace.
            let named = object["metadata"]["namespace"].is_string();
            ensure!(named != in_the_cluster, "{case}: {}", title(object));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_container_has_a_versioned_image_and_resource_requests() -> Result<()> {
    for Rendered { case, objects, .. } in every().await? {
        for object in objects {
            for container in containers(object) {
                let image = container["image"].as_str().unwrap_or_default();
                ensure!(is_of_a_version(image), "{case}: {}: image {image:?}", title(object));
                let policy = &container["imagePullPolicy"];
                ensure!(policy == "IfNotPresent" || policy == "Always", "{case}: {}: {policy}", title(object));
                for amount in ["cpu", "memory"] {
                    let asked = &container["resources"]["requests"][amount];
                    ensure!(!asked.is_null(), "{case}: {}: no request of {amount}", title(object));
                }
                for variable in container["env"].as_array().into_iter().flatten() {
                    if variable["name"].as_str().is_some_and(|name| name.ends_with("_IMAGE")) {
                        let image = variable["value"].as_str().unwrap_or_default();
                        ensure!(is_of_a_version(image), "{case}: {}: {variable}", title(object));
                    }
                }
            }
        }
    }
    Ok(())
}

fn containers(object: &Value) -> Vec<Value> {
    let Some(template) = pod_template(object) else { return Vec::new() };
    ["initContainers", "containers"]
        .iter()
        .filter_map(|list| template["spec"][list].as_array().cloned())
        .flatten()
        .collect()
}

/// Returns whether the image has a tag or digest. The colon of a registry's port is not a tag's.
fn is_of_a_version(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or_default();
    match name.split_once('@') {
        Some((_, digest)) => digest.starts_with("sha256:"),
        None => name.split_once(':').is_some_and(|(_, tag)| !tag.is_empty() && tag != "latest"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_from_the_registry_that_is_given() -> Result<()> {
    let images = |case: &str, rendered: &[Rendered]| -> Result<Vec<String>> {
        let found = rendered.iter().find(|rendered| rendered.case == case).context("no such case")?;
        let deployment = found.objects.iter().find(|object| object["kind"] == "Deployment").context("no Deployment")?;
        let container = &containers(deployment)[0];
        let of_pods = container["env"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|variable| variable["name"] == "PRODUCER_IMAGE" || variable["name"] == "CONSUMER_IMAGE");
        let images = std::iter::once(&container["image"]).chain(of_pods.map(|variable| &variable["value"]));
        Ok(images.filter_map(Value::as_str).map(ToOwned::to_owned).collect())
    };
    let version = env!("CARGO_PKG_VERSION");
    let names = ["operator", "producer", "consumer"];
    let rendered = operator().await?;
    let expected = names.map(|name| format!("orderflow-{name}:{version}"));
    ensure!(images("defaults", rendered)? == expected, "{:?}", images("defaults", rendered)?);
    let expected = names.map(|name| format!("registry.example.com:5000/shop/orderflow-{name}:{version}"));
    ensure!(images("one registry for all", rendered)? == expected, "{:?}", images("one registry for all", rendered)?);
    let expected =
        ["one.example.com/a/operator:1.2.3", "two.example.com/a/producer:1.2.3", "three.example.com/a/consumer:1.2.3"];
    ensure!(images("an image of each own", rendered)? == expected, "{:?}", images("an image of each own", rendered)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_have_the_version_of_the_workspace() -> Result<()> {
    let site = Site::new().await?;
    for name in [OPERATOR, BACKING, MONITORING] {
        let shown = site.helm.run(&["show", "chart", &chart(name).display().to_string()]).await?;
        let shown = objects(&shown)?.remove(0);
        for field in ["version", "appVersion"] {
            ensure!(shown[field] == env!("CARGO_PKG_VERSION"), "{name}: {field} is {}", shown[field]);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_notes_of_an_installation_name_existing_files() -> Result<()> {
    for Rendered { case, notes, .. } in every().await? {
        let words = notes.split(|letter: char| letter.is_whitespace() || letter == ',');
        let files: BTreeSet<&str> = words
            .filter(|word| word.starts_with("examples/") || word.starts_with("charts/"))
            .map(|word| word.trim_end_matches(['.', ':']))
            .collect();
        ensure!(!files.is_empty(), "{case}: the notes name no file: {notes}");
        for file in files {
            ensure!(repository(file).exists(), "{case}: {file} does not exist");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_secrets_shows_a_password() -> Result<()> {
    let site = Site::new().await?;
    let given = ["a-pass/word+of%Postgres", "an-id-of-S3", "a-key-of-S3"];
    let values = json!({
        "postgres": { "password": given[0] },
        "s3": { "accessKeyId": given[1], "secretAccessKey": given[2] },
        "kafka": { "enabled": has_strimzi("passwords in manifests of Kafka")? },
    });
    let release = site.helm.render(BACKING, &chart(BACKING), &values).await?;
    let mut hidden: BTreeSet<String> = given.map(ToOwned::to_owned).into();
    let (secrets, others): (Vec<Value>, Vec<Value>) =
        objects(&release.manifests())?.into_iter().partition(|object| object["kind"] == "Secret");
    // In each form that a Secret contains it: a DSN escapes its password.
    for (key, value) in secrets.iter().filter_map(|secret| secret["data"].as_object()).flatten() {
        if key != "username" && key != "database" {
            let value = value.as_str().context("a value that is no text")?;
            hidden.insert(value.to_owned());
            hidden.insert(String::from_utf8(serde_json::from_value::<ByteString>(json!(value))?.0)?);
        }
    }
    ensure!(hidden.len() >= 8, "only {}", hidden.len());
    let shown: String = others.iter().map(ToString::to_string).chain([release.info.notes]).collect();
    let found: Vec<&String> = hidden.iter().filter(|secret| shown.contains(*secret)).collect();
    ensure!(found.is_empty(), "{found:?} in {shown}");
    Ok(())
}
