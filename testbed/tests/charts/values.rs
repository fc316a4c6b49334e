//! The values with which the charts are rendered: each switch and each optional object at least once, as
//! [`each_value_of_the_charts_is_in_the_table`] checks.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    files::{BACKING, MONITORING, OPERATOR, chart, objects},
    site::Site,
};

/// A case: its name and its values.
pub type Case = (&'static str, Value);

pub fn operator() -> Vec<Case> {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    vec![
        ("defaults", json!({})),
        ("another namespace", json!({ "watchNamespace": "default" })),
        ("all namespaces", json!({ "allNamespaces": true })),
        ("one registry for all", json!({ "imageRegistry": "registry.example.com:5000/shop" })),
        (
            "an image of each own",
            json!({
                "imageRegistry": "other.example.com",
                "image": { "registry": "one.example.com", "repository": "a/operator", "tag": "1.2.3", "pullPolicy": "Always" },
                "producerImage": { "registry": "two.example.com", "repository": "a/producer", "tag": "1.2.3" },
                "consumerImage": { "registry": "three.example.com", "repository": "a/consumer", "tag": "1.2.3" },
                "imagePullSecrets": [{ "name": "one" }, { "name": "two" }],
            }),
        ),
        (
            "images by digest",
            json!({
                "image": { "digest": digest },
                "producerImage": { "digest": digest },
                "consumerImage": { "digest": digest },
            }),
        ),
        ("three of it", json!({ "replicas": 3 })),
        (
            "other resources",
            json!({ "resources": {
                "requests": { "cpu": 1, "memory": "1Gi", "ephemeral-storage": "1Mi" },
                "limits": { "cpu": "2", "memory": "1Gi" },
            }}),
        ),
        (
            "an account with annotations",
            json!({ "serviceAccount": {
                "name": "other",
                "annotations": { "eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/operator" },
            }}),
        ),
        ("an account that is there", json!({ "serviceAccount": { "create": false, "name": "other" } })),
        ("the default account", json!({ "serviceAccount": { "create": false } })),
        (
            "where the pods run",
            json!({
                "podAnnotations": { "example.com/a": "1" },
                "podLabels": { "example.com/team": "shop" },
                "priorityClassName": "system-cluster-critical",
                "nodeSelector": { "kubernetes.io/arch": "amd64" },
                "tolerations": [{ "key": "dedicated", "operator": "Equal", "value": "shop", "effect": "NoSchedule" }],
                "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{ "matchExpressions": [
                        { "key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"] },
                    ]}],
                }}},
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": { "matchLabels": { "app.kubernetes.io/component": "operator" } },
                }],
                "extraEnv": [
                    { "name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128" },
                    { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                ],
            }),
        ),
        (
            "other settings",
            json!({
                "probeSeconds": 10, "cleanupSeconds": 20, "leaseSeconds": 30, "concurrency": 2,
                "bucketPatterns": ["orders-*", "receipts"],
                "log": "info,orderflow_operator=debug", "logFormat": "text",
            }),
        ),
        ("without the definition", json!({ "crds": { "install": false } })),
        ("a definition that goes with the release", json!({ "crds": { "keep": false } })),
        ("without permissions", json!({ "rbac": { "create": false } })),
        ("without roles for users", json!({ "rbac": { "userRoles": false } })),
        ("without a Service", json!({ "metrics": { "service": { "enabled": false } } })),
        (
            "a Service and a ServiceMonitor",
            json!({ "metrics": {
                "service": { "annotations": { "prometheus.io/scrape": "true" } },
                "serviceMonitor": { "enabled": true, "labels": { "release": "prometheus" }, "interval": "30s" },
            }}),
        ),
        ("without a NetworkPolicy", json!({ "networkPolicy": { "enabled": false } })),
        (
            "a NetworkPolicy for both ways",
            json!({ "networkPolicy": {
                "metricsFrom": [{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "monitoring" } } }],
                "egress": {
                    "enabled": true,
                    "apiServerPorts": [8443],
                    "rules": [{ "ports": [{ "port": 5432 }, { "port": 9092 }], "to": [{ "ipBlock": { "cidr": "10.0.0.0/8" } }] }],
                },
            }}),
        ),
        ("nothing but DNS", json!({ "networkPolicy": { "egress": { "enabled": true, "apiServerPorts": [] } } })),
        ("without a hook", json!({ "releaseFinalizers": { "enabled": false } })),
        ("a hook that waits longer", json!({ "releaseFinalizers": { "waitSeconds": 600 } })),
        ("another name", json!({ "nameOverride": "other" })),
        ("another whole name", json!({ "fullnameOverride": "other" })),
        ("a name of full length", json!({ "fullnameOverride": "n".repeat(52) })),
    ]
}

/// Returns the cases of the backing services. `kafka` marks those that need Strimzi's kinds.
pub fn backing() -> Vec<Case> {
    let image = json!({
        "registry": "registry.example.com:5000", "repository": "mirror/image", "tag": "1.2.3", "pullPolicy": "Always",
    });
    let resources = json!({ "requests": { "cpu": 1, "memory": "2Gi" }, "limits": { "cpu": "2", "memory": "2Gi" } });
    vec![
        ("defaults", json!({})),
        ("without Kafka", json!({ "kafka": { "enabled": false } })),
        ("without Postgres", json!({ "postgres": { "enabled": false }, "kafka": { "enabled": false } })),
        ("without LocalStack", json!({ "localstack": { "enabled": false }, "kafka": { "enabled": false } })),
        ("nothing but Kafka", json!({ "postgres": { "enabled": false }, "localstack": { "enabled": false } })),
        (
            "everything else",
            json!({
                "imagePullSecrets": [{ "name": "registry" }],
                "postgres": {
                    "image": image, "password": "p@ss:w/o%rd+", "resources": resources,
                    "storage": { "size": "1Gi", "className": "standard" },
                },
                "localstack": { "image": image, "resources": resources },
                "s3": { "accessKeyId": "an-id", "secretAccessKey": "a-key" },
                "kafka": { "enabled": false },
            }),
        ),
        (
            "three Kafkas",
            json!({ "kafka": {
                "version": "", "replicas": 3, "storage": { "size": "1Gi", "className": "standard" }, "heap": "1g",
                "resources": resources,
            }}),
        ),
    ]
}

pub fn monitoring() -> Vec<Case> {
    let off = json!({ "enabled": false });
    vec![
        ("defaults", json!({})),
        ("rules alone", json!({ "podMonitors": { "pipelines": off, "operator": off }, "dashboards": off })),
        ("without rules", json!({ "prometheusRule": off })),
        (
            "everything else",
            json!({
                "runbookUrl": "https://docs.example.com/runbook.html",
                "podMonitors": {
                    "pipelines": { "namespaces": ["shop", "store"] },
                    "operator": { "namespaces": ["orderflow-system"] },
                    "labels": { "release": "prometheus" },
                    "interval": "30s",
                },
                "prometheusRule": { "labels": { "release": "prometheus" } },
                "dashboards": {
                    "label": "dashboard", "labelValue": "yes", "folder": "OrderFlow", "folderAnnotation": "folder",
                },
            }),
        ),
        ("another name", json!({ "nameOverride": "other" })),
        ("another whole name", json!({ "fullnameOverride": "n".repeat(52) })),
    ]
}

pub fn needs_strimzi(values: &Value) -> bool {
    values["kafka"]["enabled"] != false
}

/// Returns the default values of a chart.
pub async fn defaults(site: &Site, name: &str) -> Result<Value> {
    let chart = chart(name);
    let printed = site.helm.run(&["show", "values", &chart.display().to_string()]).await?;
    Ok(objects(&printed)?.remove(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_value_of_the_charts_is_in_the_table() -> Result<()> {
    let site = Site::new().await?;
    for (name, table) in [(OPERATOR, operator()), (BACKING, backing()), (MONITORING, monitoring())] {
        let defaults = defaults(&site, name).await?;
        let missing: Vec<String> = leaves(&defaults, "")
            .into_iter()
            .filter(|(path, default)| {
                !table.iter().any(|(_, values)| values.pointer(path).is_some_and(|value| value != default))
            })
            .map(|(path, _)| path)
            .collect();
        ensure!(missing.is_empty(), "{name}: no case changes {missing:?}");
    }
    Ok(())
}

/// Returns the values that are not maps, or are empty maps, with their JSON pointers.
pub fn leaves(value: &Value, path: &str) -> Vec<(String, Value)> {
    match value.as_object().filter(|map| !map.is_empty()) {
        Some(map) => map.iter().flat_map(|(key, value)| leaves(value, &format!("{path}/{key}"))).collect(),
        None => vec![(path.to_owned(), value.clone())],
    }
}
