//! Creates and maintains the children by server-side apply. Writes only if the wanted child differs from the last
//! applied one, or if another client changed a field that we set. Fields that others set beside ours are left alone.

mod autoscaling;
mod child;
mod ports;

use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
    core::PartialObjectMeta,
};
use orderflow_service::failpoint;
use serde_json::json;

use super::{
    context::Context,
    resource_state::{Applied, ResourceState, Version},
    workload::{Availability, Gate, Gates, Workloads, availability, not_created},
};
use crate::{
    build::{Children, ConsumerChildren, ProducerChildren},
    cache::trim::{fingerprint_of_ours, hash},
    condition::{Problem, Reason},
    kubernetes::{FIELD_MANAGER, as_operator, explain, is_conflict, is_gone},
    pipeline::{Identity, Part, Pipeline, Scale},
};
use child::Child;

/// The number of attempts against concurrent writes. Controllers write a new object a few times within a second.
const MAX_ATTEMPTS: usize = 5;

/// Applies all children. Destructures them without `..`, so that a child that is not applied does not compile.
pub async fn apply(
    context: &Context,
    pipeline: &Pipeline,
    children: Children,
    gates: &Gates,
    state: &mut ResourceState,
) -> Workloads {
    let mut applier = Applier { context, identity: &pipeline.identity, state };
    let Children { producer, consumer } = children;
    Workloads {
        producer: applier.producer(producer, pipeline.producer.scale, &gates.producer).await,
        consumer: applier.consumer(consumer, &gates.consumer).await,
    }
}

enum Gated {
    Open {
        exists: bool,
    },
    /// The availability of the running pods.
    Closed(Availability),
}

struct Applier<'a> {
    context: &'a Context,
    identity: &'a Identity,
    state: &'a mut ResourceState,
}

impl Applier<'_> {
    /// Applies the producer's children: first the NetworkPolicy, then what the pods need, then the pods.
    async fn producer(&mut self, children: ProducerChildren, scale: Scale, gate: &Gate) -> Part<Availability> {
        let ProducerChildren {
            service_account,
            service,
            internal_service,
            deployment,
            disruption_budget,
            autoscaler,
            network_policy,
        } = children;
        let name = deployment.name_any();
        let exists = match self.pass_gate(&name, gate).await? {
            Gated::Open { exists } => exists,
            Gated::Closed(availability) => return Ok(availability),
        };
        self.apply_or_remove(&name, network_policy).await?;
        self.apply(service_account).await?;
        self.apply(service).await?;
        self.apply(disruption_budget).await?;
        // The autoscaler must be gone before the Deployment gets a fixed number of pods.
        if autoscaler.is_none() {
            self.apply_or_remove(&name, None::<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>).await?;
        }
        let least = match scale {
            Scale::Fixed(_) => None,
            Scale::Automatic { min, .. } => Some(min),
        };
        let availability = self.deployment(deployment, least, exists).await?;
        self.apply_or_remove(&name, autoscaler).await?;
        // Last, so that a foreign Service of that name does not delay a rollout.
        self.apply(internal_service).await?;
        Ok(availability)
    }

    async fn consumer(&mut self, children: ConsumerChildren, gate: &Gate) -> Part<Availability> {
        let ConsumerChildren { service_account, deployment, disruption_budget, network_policy } = children;
        let name = deployment.name_any();
        let exists = match self.pass_gate(&name, gate).await? {
            Gated::Open { exists } => exists,
            Gated::Closed(availability) => return Ok(availability),
        };
        self.apply_or_remove(&name, network_policy).await?;
        self.apply(service_account).await?;
        self.apply(disruption_budget).await?;
        self.deployment(deployment, None, exists).await
    }

    /// Checks the gate. If it is closed, everything that belongs to the Deployment is left alone as well, because a
    /// changed NetworkPolicy could interrupt running pods.
    async fn pass_gate(&self, name: &str, gate: &Gate) -> Part<Gated> {
        let exists = self.find::<Deployment>(name).await?.is_some();
        match (exists, &gate.create, &gate.update) {
            (false, Ok(()), _) | (true, _, Ok(())) => Ok(Gated::Open { exists }),
            (false, Err(problem), _) => Err(not_created(problem)),
            (true, _, Err(_)) => self.availability(name).map(Gated::Closed),
        }
    }

    /// Applies the Deployment. `least` is set if an autoscaler sets the number of pods; a new Deployment starts with
    /// it.
    async fn deployment(&mut self, wanted: Deployment, least: Option<i32>, exists: bool) -> Part<Availability> {
        let name = wanted.name_any();
        if let Some(least) = least {
            self.hand_over_replicas(&wanted, least, exists).await?;
        }
        self.apply(wanted).await?;
        self.availability(&name)
    }

    fn availability(&self, name: &str) -> Part<Availability> {
        let not_seen = Availability {
            available: false,
            reason: Reason::Progressing,
            message: "the Deployment's controller has not observed the change yet".to_owned(),
        };
        match self.context.stores.deployments.get(&self.identity.child(name)) {
            Some(live) if !self.is_outdated::<Deployment>(name, &live.metadata) => availability(&live),
            _ => Ok(not_seen),
        }
    }

    async fn apply_or_remove<K: Child>(&mut self, name: &str, wanted: Option<K>) -> Part<()> {
        match wanted {
            Some(wanted) => self.apply(wanted).await,
            None => self.remove::<K>(name).await,
        }
    }

    async fn apply<K: Child>(&mut self, mut wanted: K) -> Part<()> {
        let name = wanted.name_any();
        let live = self.find::<K>(&name).await?;
        let wanted_hash = hash(&serde_json::to_string(&wanted).unwrap_or_default());
        if let Some(live) = &live {
            // A child that is being deleted is created again once it is gone.
            if live.deletion_timestamp.is_some() || self.is_settled::<K>(&name, live, wanted_hash) {
                return Ok(());
            }
            // The uid makes this a conflict if the object was replaced in between.
            wanted.meta_mut().uid.clone_from(&live.uid);
        }
        if live.is_none() {
            wanted.meta_mut().uid = self.create(&name, &wanted).await?.uid();
        }
        let child = self.patch(&name, &wanted).await?;
        // Of the answer to the apply: later answers may contain the change of another client.
        let applied = Applied {
            wanted: wanted_hash,
            ours: fingerprint_of_ours(child.meta()),
            version: Version::from_meta(child.meta()),
        };
        failpoint::held_up("operator::after-apply").await;
        self.hold_by_apply_alone(&name, child).await?;
        tracing::info!(kind = K::KIND, name, created = live.is_none(), "applied");
        self.state.applied.insert((K::KIND, name), applied);
        Ok(())
    }

    /// Returns true if the wanted child equals the last applied one and no other client changed it since.
    fn is_settled<K: Child>(&self, name: &str, live: &ObjectMeta, wanted: u64) -> bool {
        self.state.applied.get(&(K::KIND, name.to_owned())).is_some_and(|applied| {
            applied.wanted == wanted && (applied.ours == fingerprint_of_ours(live) || self.is_outdated::<K>(name, live))
        })
    }

    /// Returns true if the watch has not yet reported our last write.
    fn is_outdated<K: Child>(&self, name: &str, live: &ObjectMeta) -> bool {
        let applied = self.state.applied.get(&(K::KIND, name.to_owned()));
        applied.is_some_and(|applied| Version::from_meta(live) < applied.version)
    }

    /// Creates the child. An apply would silently take over an object of the same name that was created since the
    /// check; a create makes that a conflict.
    async fn create<K: Child>(&self, name: &str, wanted: &K) -> Part<K> {
        failpoint::held_up("operator::before-create").await;
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        self.api::<K>().create(&parameters, wanted).await.map_err(|error| problem::<K>(name, &error))
    }

    /// Releases the fields that were created or patched rather than applied. To the API server those belong to another
    /// manager, so it would not remove them when they are no longer applied.
    async fn hold_by_apply_alone<K: Child>(&self, name: &str, mut child: K) -> Part<()> {
        let is_update = |entry: &ManagedFieldsEntry| {
            entry.manager.as_deref() == Some(FIELD_MANAGER)
                && entry.operation.as_deref() == Some("Update")
                && entry.subresource.is_none()
        };
        let api = self.api::<K>();
        for _ in 0..MAX_ATTEMPTS {
            let Some(index) = child.managed_fields().iter().position(is_update) else { break };
            let path = format!("/metadata/managedFields/{index}");
            let patch = json!([
                { "op": "test", "path": "/metadata/uid", "value": child.uid() },
                { "op": "test", "path": format!("{path}/manager"), "value": FIELD_MANAGER },
                { "op": "test", "path": format!("{path}/operation"), "value": "Update" },
                { "op": "remove", "path": path },
            ]);
            let patch = serde_json::from_value(patch).expect("a list of operations is a JSON patch");
            let released = match api.patch(name, &as_operator(), &Patch::Json::<()>(patch)).await {
                // A controller wrote in between, so the entry has another index.
                Err(error) if is_invalid(&error) => api.get(name).await,
                answer => answer,
            };
            child = released.map_err(|error| problem::<K>(name, &error))?;
        }
        Ok(())
    }

    async fn patch<K: Child>(&self, name: &str, wanted: &K) -> Part<K> {
        // Forced, because drift would persist in a field that another manager sets as well.
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let (api, apply) = (self.api::<K>(), Patch::Apply(wanted));
        let applied = match api.patch(name, &parameters, &apply).await {
            Err(error) if is_invalid(&error) && self.replace_ports(name, wanted).await => {
                api.patch(name, &parameters, &apply).await
            }
            answer => answer,
        };
        applied.map_err(|error| problem::<K>(name, &error))
    }

    /// Returns true if the replacement may have solved the conflict; see [`ports`].
    async fn replace_ports<K: Child>(&self, name: &str, wanted: &K) -> bool {
        let Some(ports) = ports::replaced(wanted).filter(|_| wanted.meta().uid.is_some()) else { return false };
        let parameters = as_operator();
        self.api::<K>().patch(name, &parameters, &Patch::Strategic(ports)).await.is_ok()
    }

    /// Finds the live child, and fails if it does not belong to this resource. Asks the API server if the watch does
    /// not know it, because the watch sees only objects with our label.
    async fn find<K: Child>(&self, name: &str) -> Part<Option<ObjectMeta>> {
        let live = match K::find(&self.context.stores, self.identity, name) {
            Some(live) => Some(live),
            None => {
                let found = self.api::<PartialObjectMeta<K>>().get_opt(name).await;
                found.map_err(|error| problem::<K>(name, &error))?.map(|found| found.metadata)
            }
        };
        match live {
            Some(live) if !is_ours(&live, &self.identity.uid) => Err(Problem::new(
                Reason::ChildConflict,
                format!(
                    "{} {name} exists and does not belong to this resource; it is left alone: remove or rename it",
                    K::KIND
                ),
            )),
            live => Ok(live),
        }
    }

    /// Removes the child if the watch knows it and it belongs to this resource.
    async fn remove<K: Child>(&mut self, name: &str) -> Part<()> {
        self.state.applied.remove(&(K::KIND, name.to_owned()));
        let Some(live) = K::find(&self.context.stores, self.identity, name) else { return Ok(()) };
        if !is_ours(&live, &self.identity.uid) || live.deletion_timestamp.is_some() {
            return Ok(());
        }
        let parameters = DeleteParams {
            preconditions: Some(Preconditions { uid: live.uid.clone(), resource_version: None }),
            ..DeleteParams::background()
        };
        match self.api::<K>().delete(name, &parameters).await {
            Ok(_) => tracing::info!(kind = K::KIND, name, "removed"),
            Err(error) if is_gone(&error) || is_conflict(&error) => {}
            Err(error) => return Err(problem::<K>(name, &error)),
        }
        Ok(())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.context.client.clone(), &self.identity.namespace)
    }
}

/// Returns true if the resource with this uid controls the child; another resource of the same name has another uid.
pub fn is_ours(child: &ObjectMeta, uid: &str) -> bool {
    let owners = child.owner_references.iter().flatten();
    owners.filter(|owner| owner.controller == Some(true)).any(|owner| owner.uid == uid)
}

fn is_invalid(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 422)
}

fn problem<K: Child>(name: &str, error: &kube::Error) -> Problem {
    let reason = match error {
        error if is_conflict(error) => Reason::Conflict,
        // The API server refused: a permission, a quota, or a value of the spec that it does not accept.
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => Reason::Refused,
        _ => Reason::ApplyFailed,
    };
    Problem::new(reason, format!("{} {name}: {}", K::KIND, explain(error)))
}
