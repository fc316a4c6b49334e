//! What of a live object is kept in memory: the part that somebody looks at. Of a resource's dozen children the most is what the
//! API server notes of who set which field, and of Deployments the pods' template.

use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentSpec},
    apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry},
};
use kube::{Resource, api::ObjectMeta};
use serde_json::{Value, json};

use crate::kubernetes::FIELD_MANAGER;

/// Of a kind of which nobody asks who set its fields.
pub fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

pub fn trim_child<K: Resource>(child: &mut K) {
    let meta = child.meta_mut();
    (meta.labels, meta.annotations) = (None, None);
    let ours = ours(meta)
        .map(|entry| ManagedFieldsEntry { fields_v1: entry.fields_v1.as_ref().map(Ours::kept), ..entry.clone() })
        .collect();
    meta.managed_fields = Some(ours);
}

pub fn trim_deployment(deployment: &mut Deployment) {
    trim_child(deployment);
    let replicas = deployment.spec.take().and_then(|spec| spec.replicas);
    deployment.spec = Some(DeploymentSpec { replicas, ..DeploymentSpec::default() });
}

/// Changes when, and only when, somebody else changed a field that we set, or the object is another: the API server keeps
/// for each manager which fields are its own, and takes a field away from it when another changes the value. The same of an
/// object as it is kept, and as the API server answers it.
pub fn fingerprint_of_ours(meta: &ObjectMeta) -> u64 {
    // The time is that of our last change: another process of the operator, stale, would write under the same name.
    let fields: Vec<_> = ours(meta)
        .map(|entry| {
            let digest = entry.fields_v1.as_ref().map(|fields| Ours::of(fields).digest);
            (digest, entry.time.as_ref().map(|time| time.0))
        })
        .collect();
    hash(&(&meta.uid, fields, meta.deletion_timestamp.is_some()))
}

/// Whether the number of pods is ours.
pub fn sets_replicas(deployment: &ObjectMeta) -> bool {
    ours(deployment).filter_map(|entry| entry.fields_v1.as_ref()).any(|fields| Ours::of(fields).replicas)
}

/// What we applied.
fn ours(meta: &ObjectMeta) -> impl Iterator<Item = &ManagedFieldsEntry> {
    meta.managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply"))
}

/// What one asks of the fields that are ours.
struct Ours {
    digest: u64,
    /// The number of pods is among them.
    replicas: bool,
}

impl Ours {
    /// As the API server has them, an object, or as [`Self::kept`].
    fn of(fields: &FieldsV1) -> Self {
        let kept = fields.0.as_array().map(Vec::as_slice);
        if let Some([digest, Value::Bool(replicas)]) = kept
            && let Some(digest) = digest.as_u64()
        {
            return Self { digest, replicas: *replicas };
        }
        Self { digest: hash(&fields.0.to_string()), replicas: fields.0.pointer("/f:spec/f:replicas").is_some() }
    }

    /// In place of the fields.
    fn kept(fields: &FieldsV1) -> FieldsV1 {
        let Self { digest, replicas } = Self::of(fields);
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
    fn what_is_kept_of_a_deployment_says_the_same_of_it() {
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
