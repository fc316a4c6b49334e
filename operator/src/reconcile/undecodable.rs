//! Reports a resource that does not fit its definition, for example because it was written under an older one. It
//! cannot be reconciled and must not stop the others; its pods continue to run.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{DynamicObject, Patch},
    core::error_boundary::InvalidObject,
};
use serde_json::json;

use super::{
    context::Context,
    event,
    outcome::{Error, Requeue},
    resource_state::{ResourceState, Version, Written},
};
use crate::{
    condition::Reason,
    crd::{OrderFlow, OrderFlowStatus},
    kubernetes::{as_operator, explain},
};

/// Reports the error in the status, as far as that can be written, and in an Event.
pub async fn report(context: &Context, invalid: &InvalidObject, state: &mut ResourceState) -> Result<Requeue, Error> {
    let meta = &invalid.metadata;
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    context.metrics.ready(namespace, name, false);
    context.metrics.problem(Reason::Undecodable);
    let resource = kube::core::ApiResource::erase::<OrderFlow>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &resource);
    let Some(object) = api.get_opt(name).await.map_err(Error::Status)? else { return Ok(Requeue::Never) };
    let before: OrderFlowStatus =
        object.data.get("status").and_then(|status| serde_json::from_value(status.clone()).ok()).unwrap_or_default();
    let ready = Condition {
        type_: "Ready".to_owned(),
        status: "False".to_owned(),
        reason: Reason::Undecodable.as_str().to_owned(),
        message: format!("the resource does not fit its definition: {}", invalid.error),
        observed_generation: meta.generation,
        last_transition_time: Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()),
    };
    let mut after = before.clone();
    after.observed_generation = meta.generation;
    match after.conditions.iter_mut().find(|condition| condition.type_ == ready.type_) {
        Some(old) if old.status == ready.status => {
            let since = old.last_transition_time.clone();
            *old = Condition { last_transition_time: since, ..ready };
        }
        Some(old) => *old = ready,
        None => after.conditions.insert(0, ready),
    }
    if after != before {
        let patch = Patch::Merge(json!({ "status": after }));
        let parameters = as_operator();
        if let Err(error) = api.patch_status(name, &parameters, &patch).await {
            // The API server may refuse the write because of the rest of the resource. The Event still reports the
            // error.
            tracing::warn!(error = explain(&error), "cannot write the status");
        }
        state.status = Some(Written { version: Version::from_meta(&object.metadata), status: after.clone() });
        let reference: kube::core::PartialObjectMeta<OrderFlow> =
            kube::core::PartialObjectMeta { types: None, metadata: meta.clone(), _phantom: std::marker::PhantomData };
        event::emit_changes(context, &reference, &before, &after).await;
    }
    Ok(Requeue::Probe)
}
