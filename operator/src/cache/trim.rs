//! Reduces live objects to the parts that a reconcile reads. Most of a resource's dozen children is the API server's
//! record of field owners, and most of a Deployment is the pods' template.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentSpec},
    apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry},
};
use kube::{Resource, api::ObjectMeta};
use serde_json::{Value, json};

use crate::kubernetes::FIELD_MANAGER;

/// Trims an object whose field owners are never read.
pub fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

pub fn trim_child<K: Resource>(child: &mut K) {
    let meta = child.meta_mut();
    (meta.labels, meta.annotations) = (None, None);
    let ours = ours(meta)
        .map(|entry| ManagedFieldsEntry {
            fields_v1: entry.fields_v1.as_ref().map(OwnFields::compact),
            ..entry.clone()
        })
        .collect();
    meta.managed_fields = Some(ours);
}

pub fn trim_deployment(deployment: &mut Deployment) {
    trim_child(deployment);
    let replicas = deployment.spec.take().and_then(|spec| spec.replicas);
    deployment.spec = Some(DeploymentSpec { replicas, ..DeploymentSpec::default() });
}

/// Returns a value that changes if and only if another client changed a field that we set, or replaced the object. The
/// API server records the fields of each manager, and takes a field away from a manager when another one changes its
/// value. A trimmed object and the API server's answer have the same fingerprint.
pub fn fingerprint_of_ours(meta: &ObjectMeta) -> u64 {
    // The time of our last change is included, because a stale process of the operator writes under the same name.
    let fields: Vec<_> = ours(meta)
        .map(|entry| {
            let digest = entry.fields_v1.as_ref().map(|fields| OwnFields::from_fields(fields).digest);
            (digest, entry.time.as_ref().map(|time| time.0))
        })
        .collect();
    hash(&(&meta.uid, fields, meta.deletion_timestamp.is_some()))
}

/// Returns true if we set the number of pods.
pub fn sets_replicas(deployment: &ObjectMeta) -> bool {
    ours(deployment).filter_map(|entry| entry.fields_v1.as_ref()).any(|fields| OwnFields::from_fields(fields).replicas)
}

/// Returns the records of the fields that we applied.
fn ours(meta: &ObjectMeta) -> impl Iterator<Item = &ManagedFieldsEntry> {
    meta.managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply"))
}

/// The facts about our fields that are kept.
struct OwnFields {
    digest: u64,
    /// True if the number of pods is among our fields.
    replicas: bool,
}

impl OwnFields {
    /// Reads the fields in the API server's form, an object, or in the form of [`Self::compact`].
    fn from_fields(fields: &FieldsV1) -> Self {
        let compact = fields.0.as_array().map(Vec::as_slice);
        if let Some([digest, Value::Bool(replicas)]) = compact
            && let Some(digest) = digest.as_u64()
        {
            return Self { digest, replicas: *replicas };
        }
        Self { digest: hash(&fields.0.to_string()), replicas: fields.0.pointer("/f:spec/f:replicas").is_some() }
    }

    /// Returns the compact form that replaces the fields.
    fn compact(fields: &FieldsV1) -> FieldsV1 {
        let Self { digest, replicas } = Self::from_fields(fields);
        FieldsV1(json!([digest, replicas]))
    }
}

pub fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(manager: &str, fields: &Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {
                "name": "main-producer",
                "labels": {"app": "main"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "OrderFlow", "name": "main", "uid": "1"}],
                "managedFields": [
                    {"manager": manager, "operation": "Apply", "fieldsV1": fields},
                    {"manager": "kube-controller-manager", "operation": "Update", "fieldsV1": {"f:status": {}}},
                ],
            },
            "spec": {"replicas": 2, "selector": {}, "template": {"spec": {"containers": [{"name": "producer"}]}}},
            "status": {"availableReplicas": 1},
        }))
        .unwrap()
    }

    #[test]
    fn a_trimmed_deployment_has_the_same_fingerprint_and_replicas() {
        for (fields, replicas) in [
            (json!({"f:spec": {"f:replicas": {}, "f:template": {}}}), true),
            (json!({"f:spec": {"f:template": {}}}), false),
        ] {
            let whole = deployment(FIELD_MANAGER, &fields);
            let mut kept = whole.clone();
            trim_deployment(&mut kept);
            assert_eq!(fingerprint_of_ours(&kept.metadata), fingerprint_of_ours(&whole.metadata));
            assert_eq!((sets_replicas(&kept.metadata), sets_replicas(&whole.metadata)), (replicas, replicas));
            assert_eq!(kept.metadata.owner_references, whole.metadata.owner_references);
            assert_eq!((kept.spec.and_then(|spec| spec.replicas), kept.status), (Some(2), whole.status));
            assert_eq!(kept.metadata.managed_fields.map(|entries| entries.len()), Some(1));
        }
        let mut other = deployment("kubectl", &json!({"f:spec": {"f:replicas": {}}}));
        trim_deployment(&mut other);
        assert!(!sets_replicas(&other.metadata));
    }
}
