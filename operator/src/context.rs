//! What every reconcile has at hand.

use std::{sync::Arc, time::Duration};

use aws_sdk_s3::config::SharedHttpClient;
use kube::{Client, Config, api::PatchParams};

use crate::{
    build::config_hash::Key,
    controller::Live,
    memory::Memories,
    metrics::Metrics,
    own_buckets::OwnBuckets,
    reconcile::{backends::Backends, validate::Images},
};

/// The name under which the API server knows which fields are ours.
pub const FIELD_MANAGER: &str = "orderflow-operator";

pub struct Context {
    pub client: Client,
    /// Of all buckets.
    pub s3: SharedHttpClient,
    pub live: Live,
    pub memories: Memories,
    pub metrics: Metrics,
    pub images: Images,
    pub own_buckets: OwnBuckets,
    pub backends: Backends,
    /// Of the config hashes on the pods.
    pub key: Key,
    /// Name of this process, in its events.
    pub identity: Arc<str>,
    /// How often a resource that is well is looked at again.
    pub probe_interval: Duration,
    /// How long a deleted resource is kept for what cannot be removed.
    pub cleanup_deadline: Duration,
}

/// Of the pod or of the kubeconfig.
pub async fn cluster() -> anyhow::Result<Config> {
    Config::infer().await.map_err(|error| {
        anyhow::anyhow!("no cluster: this is not a pod, and the kubeconfig cannot be used: {}", innermost(&error))
    })
}

/// How we write what is not applied: under our name.
pub fn as_operator() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// What the API server answered, in one line. An answer holds no Secret's value.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => innermost(other),
    }
}

/// The innermost cause says most, and the layers around it only that there is one.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

pub fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}
