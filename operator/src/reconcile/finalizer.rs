//! Manages the finalizer. It is set before the operator creates anything that `deletionPolicy: Delete` promises to
//! remove. With `Retain` it is never set, so that such a resource can be deleted without an operator.

use kube::{Api, Client, ResourceExt, api::Patch};
use serde_json::json;

use super::{context::Context, outcome::Error};
use crate::{
    crd::{DeletionPolicy, FINALIZER, OrderFlow},
    kubernetes::as_operator,
};

/// Adds or removes the finalizer, as the deletion policy needs it.
pub async fn sync(context: &Context, flow: &OrderFlow) -> Result<(), Error> {
    let wanted = flow.spec.deletion_policy == DeletionPolicy::Delete;
    if wanted == has(flow) {
        return Ok(());
    }
    set(&context.client, flow, wanted).await.map_err(Error::Finalizer)
}

pub fn has(flow: &impl ResourceExt) -> bool {
    flow.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// Adds or removes our finalizer. A patch replaces the whole list, in which others have finalizers as well. So the list
/// is read from the API server, because the watch may be behind, and written with the version that was read.
pub async fn set(client: &Client, flow: &impl ResourceExt, wanted: bool) -> Result<(), kube::Error> {
    let api: Api<OrderFlow> = Api::namespaced(client.clone(), &flow.namespace().unwrap_or_default());
    let live = api.get_metadata(&flow.name_any()).await?;
    let mut finalizers: Vec<&str> =
        live.finalizers().iter().map(String::as_str).filter(|finalizer| *finalizer != FINALIZER).collect();
    if wanted {
        finalizers.push(FINALIZER);
    }
    let patch = json!({
        "metadata": { "uid": flow.uid(), "resourceVersion": live.resource_version(), "finalizers": finalizers }
    });
    let parameters = as_operator();
    api.patch_metadata(&flow.name_any(), &parameters, &Patch::Merge(patch)).await.map(drop)
}
