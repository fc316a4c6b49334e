//! Values that are misspelled or of the wrong type are refused before anything is created, and the message names them.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    files::{BACKING, MONITORING, OPERATOR, chart},
    site::Site,
    values,
};

/// Maps whose keys the user chooses, with the values of the charts as examples.
const FREE: [&str; 2] = ["requests", "limits"];

#[tokio::test(flavor = "multi_thread")]
async fn helm_lint_passes() -> Result<()> {
    let site = Site::new().await?;
    let tables = [(OPERATOR, values::operator()), (BACKING, values::backing()), (MONITORING, values::monitoring())];
    for (name, table) in tables {
        // With many values, because a linter sees only the templates that they render.
        for (case, values) in table {
            site.helm.lint(&chart(name), &values).await.with_context(|| format!("{name}, {case}"))?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelled_value_is_refused_on_each_level() -> Result<()> {
    let site = Site::new().await?;
    for name in [OPERATOR, BACKING, MONITORING] {
        let defaults = values::defaults(&site, name).await?;
        let levels = levels(&defaults, "");
        ensure!(levels.len() > 5, "{name}: only {levels:?}");
        let mut typos = json!({});
        for level in &levels {
            put(&mut typos, &format!("{level}/enabeld"), json!(true));
        }
        let refused = site.helm.render_alone(name, &chart(name), &typos).await.err();
        let refused = format!("{:#}", refused.with_context(|| format!("{name} took {typos}"))?);
        for level in &levels {
            ensure!(
                refused.contains(&format!("at '{level}': additional properties 'enabeld' not allowed")),
                "{name}: the message does not name {level:?}: {refused}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_another_type_is_refused() -> Result<()> {
    let site = Site::new().await?;
    for name in [OPERATOR, BACKING, MONITORING] {
        let defaults = values::defaults(&site, name).await?;
        let mut wrong = json!({});
        let mut paths = Vec::new();
        for (path, value) in values::leaves(&defaults, "") {
            // Quantities may be numbers or text.
            if !FREE.iter().any(|free| path.contains(&format!("/{free}/"))) {
                put(&mut wrong, &path, if value.is_string() { json!(4.3) } else { json!("true") });
                paths.push(path);
            }
        }
        let refused = site.helm.render_alone(name, &chart(name), &wrong).await.err();
        let refused = format!("{:#}", refused.with_context(|| format!("{name} took {wrong}"))?);
        for path in &paths {
            ensure!(refused.contains(&format!("at '{path}': ")), "{name}: the message does not name {path}: {refused}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_cannot_work_is_refused() -> Result<()> {
    let site = Site::new().await?;
    let operator = [
        (json!({ "imageRegistry": "https://registry.example.com" }), "/imageRegistry"),
        (json!({ "image": { "tag": "a tag" } }), "/image/tag"),
        (json!({ "image": { "digest": "sha256:short" } }), "/image/digest"),
        (json!({ "image": { "pullPolicy": "always" } }), "/image/pullPolicy"),
        (json!({ "producerImage": { "repository": "Upper" } }), "/producerImage/repository"),
        (json!({ "imagePullSecrets": ["name"] }), "/imagePullSecrets/0"),
        (json!({ "replicas": -1 }), "/replicas"),
        (json!({ "probeSeconds": 0 }), "/probeSeconds"),
        (json!({ "leaseSeconds": 1 }), "/leaseSeconds"),
        (json!({ "logFormat": "yaml" }), "/logFormat"),
        (json!({ "watchNamespace": "Upper" }), "/watchNamespace"),
        (json!({ "extraEnv": [{ "value": "x" }] }), "/extraEnv/0"),
        (json!({ "extraEnv": [{ "name": "A", "value": 1 }] }), "/extraEnv/0/value"),
        (json!({ "podLabels": { "a": true } }), "/podLabels/a"),
        (
            json!({ "networkPolicy": { "egress": { "apiServerPorts": ["6443"] } } }),
            "/networkPolicy/egress/apiServerPorts/0",
        ),
        (json!({ "metrics": { "serviceMonitor": { "interval": "30" } } }), "/metrics/serviceMonitor/interval"),
        (json!({ "fullnameOverride": "n".repeat(53) }), "/fullnameOverride"),
        (
            json!({ "allNamespaces": true, "watchNamespace": "shop" }),
            "watchNamespace and allNamespaces cannot both be set",
        ),
    ];
    let backing = [
        (json!({ "kafka": { "replicas": 2 } }), "/kafka/replicas"),
        (json!({ "kafka": { "version": 4.3 } }), "/kafka/version"),
        (json!({ "kafka": { "heap": "512" } }), "/kafka/heap"),
        (json!({ "postgres": { "password": "two words" } }), "/postgres/password"),
        (json!({ "postgres": { "image": { "tag": "" } } }), "/postgres/image/tag"),
        (json!({ "localstack": { "image": { "pullPolicy": "Sometimes" } } }), "/localstack/image/pullPolicy"),
        (json!({ "s3": { "accessKeyId": "" } }), "/s3/accessKeyId"),
        (json!({ "imagePullSecrets": [{}] }), "/imagePullSecrets/0"),
    ];
    let monitoring = [
        (json!({ "runbookUrl": "runbook.html" }), "/runbookUrl"),
        (json!({ "podMonitors": { "interval": "30" } }), "/podMonitors/interval"),
        (json!({ "podMonitors": { "pipelines": { "namespaces": ["Upper"] } } }), "/podMonitors/pipelines/namespaces/0"),
        (json!({ "prometheusRule": { "labels": { "release": true } } }), "/prometheusRule/labels/release"),
    ];
    for (name, cases) in [(OPERATOR, &operator[..]), (BACKING, &backing), (MONITORING, &monitoring)] {
        for (values, named) in cases {
            let refused = site.helm.render_alone(name, &chart(name), values).await.err();
            let refused = format!("{:#}", refused.with_context(|| format!("{name} took {values}"))?);
            ensure!(refused.contains(named), "{name}: {values}: {refused}");
        }
    }
    Ok(())
}

/// Returns the JSON pointers of all maps whose keys the chart knows. An empty map takes any keys.
fn levels(value: &Value, path: &str) -> Vec<String> {
    let Some(map) = value.as_object().filter(|map| !map.is_empty()) else { return Vec::new() };
    let below = map.iter().filter(|(key, _)| !FREE.contains(&key.as_str()));
    std::iter::once(path.to_owned())
        .chain(below.flat_map(|(key, value)| levels(value, &format!("{path}/{key}"))))
        .collect()
}

fn put(target: &mut Value, path: &str, value: Value) {
    let mut place = target;
    for key in path.split('/').skip(1) {
        place = &mut place[key];
    }
    *place = value;
}
