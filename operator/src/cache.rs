//! The in-memory copies of the cluster's objects, which the watches of [`crate::controller`] maintain. Of every kind
//! except OrderFlows and Deployments only the metadata is kept, including Secrets. [`trim`] removes what a reconcile
//! does not read.

pub mod trim;

use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::reflector::Store,
};

use crate::crd::OrderFlow;

/// An OrderFlow, or the error of its decoding. One that cannot be decoded must not hide the others.
pub type Flow = DeserializeGuard<OrderFlow>;

/// An object of a kind of which only the metadata is read.
pub type Metadata<K> = PartialObjectMeta<K>;

/// The objects as of the latest watch events.
#[derive(Clone)]
pub struct Stores {
    pub flows: Store<Flow>,
    pub deployments: Store<Deployment>,
    pub services: Store<Metadata<Service>>,
    pub service_accounts: Store<Metadata<ServiceAccount>>,
    pub disruption_budgets: Store<Metadata<PodDisruptionBudget>>,
    pub autoscalers: Store<Metadata<HorizontalPodAutoscaler>>,
    pub network_policies: Store<Metadata<NetworkPolicy>>,
    pub secrets: Store<Metadata<Secret>>,
}

impl Stores {
    /// Waits until every watch has listed its objects; before that an existing child looks like a missing one.
    pub async fn wait_until_listed(&self) {
        // An error means that the watch has ended, and it ends only with the process.
        let _ = tokio::join!(
            self.flows.wait_until_ready(),
            self.deployments.wait_until_ready(),
            self.services.wait_until_ready(),
            self.service_accounts.wait_until_ready(),
            self.disruption_budgets.wait_until_ready(),
            self.autoscalers.wait_until_ready(),
            self.network_policies.wait_until_ready(),
            self.secrets.wait_until_ready(),
        );
    }
}
