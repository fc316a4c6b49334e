//! Helpers for the operator's clients of the API server: its address, the name under which they write, and its errors.

use kube::{Config, api::PatchParams};

/// The name under which the API server records the fields that the operator sets.
pub const FIELD_MANAGER: &str = "orderflow-operator";

/// Finds the cluster: the one that the pod runs in, or the kubeconfig's.
pub async fn cluster() -> anyhow::Result<Config> {
    Config::infer().await.map_err(|error| {
        anyhow::anyhow!("find the cluster: this is not a pod, and the kubeconfig is unusable: {}", innermost(&error))
    })
}

/// Returns the parameters of a write that is not an apply.
pub fn as_operator() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// Returns the API server's answer in one line. It contains no value of a Secret.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => innermost(other),
    }
}

/// Returns the innermost cause: the layers around it add nothing to it.
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
