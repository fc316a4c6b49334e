//! The kinds of children, and the store of each.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{Resource, api::ObjectMeta};
use serde::{Serialize, de::DeserializeOwned};

use crate::{cache::Stores, pipeline::Identity};

/// An object that a reconcile applies and removes.
pub trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned
{
    const KIND: &'static str;

    /// Finds the child in the store of its kind.
    fn find(stores: &Stores, identity: &Identity, name: &str) -> Option<ObjectMeta>;
}

macro_rules! children {
    ($($kind:ident in $store:ident),+ $(,)?) => {$(
        impl Child for $kind {
            const KIND: &'static str = stringify!($kind);

            fn find(stores: &Stores, identity: &Identity, name: &str) -> Option<ObjectMeta> {
                stores.$store.get(&identity.child(name)).map(|object| object.meta().clone())
            }
        }
    )+};
}

children! {
    Deployment in deployments,
    Service in services,
    ServiceAccount in service_accounts,
    PodDisruptionBudget in disruption_budgets,
    HorizontalPodAutoscaler in autoscalers,
    NetworkPolicy in network_policies,
}
