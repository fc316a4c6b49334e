//! The files under test: charts, examples, and the objects of a YAML stream.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

pub const OPERATOR: &str = "orderflow-operator";
pub const BACKING: &str = "orderflow-backing";
pub const MONITORING: &str = "orderflow-monitoring";

/// Returns `Kind/name`.
pub fn title(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// Returns the documents of a YAML stream that are not empty.
pub fn objects(manifests: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifests).context("read YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Returns the pod that an object creates, with the volumes that its controller would add.
pub fn pod_template(object: &Value) -> Option<Value> {
    let spec = &object["spec"];
    let mut template = match object["kind"].as_str()? {
        "Pod" => json!({ "metadata": { "labels": object["metadata"]["labels"] }, "spec": spec }),
        "CronJob" => spec["jobTemplate"]["spec"]["template"].clone(),
        "DaemonSet" | "Deployment" | "Job" | "ReplicaSet" | "StatefulSet" => spec["template"].clone(),
        _ => return None,
    };
    let claims = spec["volumeClaimTemplates"].as_array().into_iter().flatten();
    let volumes: Vec<Value> = template["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .cloned()
        .chain(claims.map(|claim| {
            json!({ "name": claim["metadata"]["name"], "persistentVolumeClaim": { "claimName": claim["metadata"]["name"] } })
        }))
        .collect();
    template["spec"]["volumes"] = Value::Array(volumes);
    Some(template)
}

/// Returns a file or folder of this repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Returns the folder of a chart.
pub fn chart(name: &str) -> PathBuf {
    repository("charts").join(name)
}

/// Returns the files of the examples.
pub fn examples() -> Result<Vec<String>> {
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(repository("examples"))?.collect();
    Ok(entries?.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Returns the objects of an example.
pub fn example(file: &str) -> Result<Vec<Value>> {
    let path = repository("examples").join(file);
    objects(&std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?)
}
