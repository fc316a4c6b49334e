//! The finalizer: there before anything is made that `deletionPolicy: Delete` promises to remove, and never with `Retain`,
//! so that a resource whose operator is gone can be deleted like any other.

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::Error;
use crate::{
    context::Context,
    crd::{DeletionPolicy, FINALIZER, OrderFlow},
};

pub async fn keep(context: &Context, flow: &OrderFlow) -> Result<(), Error> {
    let wanted = flow.spec.deletion_policy == DeletionPolicy::Delete;
    if wanted == has(flow) {
        return Ok(());
    }
    set(context, flow, wanted).await.map_err(Error::Finalizer)
}

pub fn has(flow: &OrderFlow) -> bool {
    flow.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// With the version that was read, because the list is replaced as a whole and others have finalizers, too.
pub async fn set(context: &Context, flow: &OrderFlow, wanted: bool) -> Result<(), kube::Error> {
    let mut finalizers: Vec<&str> =
        flow.finalizers().iter().map(String::as_str).filter(|finalizer| *finalizer != FINALIZER).collect();
    if wanted {
        finalizers.push(FINALIZER);
    }
    let patch = json!({
        "metadata": { "resourceVersion": flow.resource_version(), "finalizers": finalizers }
    });
    let api: Api<OrderFlow> = Api::namespaced(context.client.clone(), &flow.namespace().unwrap_or_default());
    api.patch_metadata(&flow.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}
