//! Creates the children and keeps them so by server-side apply, and writes only when something differs: when something else
//! is wanted than was applied last, or when somebody changed a field that is ours. Fields that others set beside ours are
//! theirs.

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
    workload::{Availability, Gate, Gates, Workloads, availability, not_made},
};
use crate::{
    build::{Children, ConsumerChildren, ProducerChildren},
    cache::trim::{fingerprint_of_ours, hash},
    condition::{Problem, Reason},
    kubernetes::{FIELD_MANAGER, as_operator, explain, is_conflict, is_gone},
    pipeline::{Identity, Part, Pipeline, Scale},
};
use child::Child;

/// Controllers write a new object a few times within a second.
const GIVING_UP: usize = 5;

/// Every child is named here, without `..`: one that nobody applies does not compile.
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

enum Entered {
    Yes {
        exists: bool,
    },
    /// How it stands with what runs.
    No(Availability),
}

struct Applier<'a> {
    context: &'a Context,
    identity: &'a Identity,
    state: &'a mut ResourceState,
}

impl Applier<'_> {
    /// What the pods need comes before the pods, and what closes their network first.
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
        let exists = match self.enter(&name, gate).await? {
            Entered::Yes { exists } => exists,
            Entered::No(availability) => return Ok(availability),
        };
        self.apply_or_remove(&name, network_policy).await?;
        self.apply(service_account).await?;
        self.apply(service).await?;
        self.apply(disruption_budget).await?;
        // Before the Deployment is told how many pods there are, nobody else may do so any more.
        if autoscaler.is_none() {
            self.apply_or_remove(&name, None::<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>).await?;
        }
        let least = match scale {
            Scale::Fixed(_) => None,
            Scale::Automatic { min, .. } => Some(min),
        };
        let availability = self.deployment(deployment, least, exists).await?;
        self.apply_or_remove(&name, autoscaler).await?;
        // The last: somebody's own Service of that name must not hold up a rollout.
        self.apply(internal_service).await?;
        Ok(availability)
    }

    async fn consumer(&mut self, children: ConsumerChildren, gate: &Gate) -> Part<Availability> {
        let ConsumerChildren { service_account, deployment, disruption_budget, network_policy } = children;
        let name = deployment.name_any();
        let exists = match self.enter(&name, gate).await? {
            Entered::Yes { exists } => exists,
            Entered::No(availability) => return Ok(availability),
        };
        self.apply_or_remove(&name, network_policy).await?;
        self.apply(service_account).await?;
        self.apply(disruption_budget).await?;
        self.deployment(deployment, None, exists).await
    }

    /// Whether anything may be done. If not, what belongs to a Deployment is left alone, too: a network that is closed anew
    /// would stop what runs.
    async fn enter(&self, name: &str, gate: &Gate) -> Part<Entered> {
        let exists = self.find::<Deployment>(name).await?.is_some();
        match (exists, &gate.make, &gate.change) {
            (false, Ok(()), _) | (true, _, Ok(())) => Ok(Entered::Yes { exists }),
            (false, Err(problem), _) => Err(not_made(problem)),
            (true, _, Err(_)) => self.availability(name).map(Entered::No),
        }
    }

    /// `least`: the number of pods is not ours, and a new Deployment has this many.
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
            message: "the change is not acted on yet".to_owned(),
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
            // It comes back as soon as it is gone.
            if live.deletion_timestamp.is_some() || self.is_settled::<K>(&name, live, wanted_hash) {
                return Ok(());
            }
            // If it was replaced by another since, this is a conflict.
            wanted.meta_mut().uid.clone_from(&live.uid);
        }
        if live.is_none() {
            wanted.meta_mut().uid = self.create(&name, &wanted).await?.uid();
        }
        let applied = self.hold_by_apply_alone(&name, self.patch(&name, &wanted).await?).await?;
        tracing::info!(kind = K::KIND, name, created = live.is_none(), "applied");
        let applied = Applied {
            wanted: wanted_hash,
            ours: fingerprint_of_ours(applied.meta()),
            version: Version::of(applied.meta()),
        };
        self.state.applied.insert((K::KIND, name), applied);
        Ok(())
    }

    /// Nothing else is wanted than was applied last, and nobody changed it since.
    fn is_settled<K: Child>(&self, name: &str, live: &ObjectMeta, wanted: u64) -> bool {
        self.state.applied.get(&(K::KIND, name.to_owned())).is_some_and(|applied| {
            applied.wanted == wanted && (applied.ours == fingerprint_of_ours(live) || self.is_outdated::<K>(name, live))
        })
    }

    /// The watch has not told of our own last write yet.
    fn is_outdated<K: Child>(&self, name: &str, live: &ObjectMeta) -> bool {
        let applied = self.state.applied.get(&(K::KIND, name.to_owned()));
        applied.is_some_and(|applied| Version::of(live) < applied.version)
    }

    /// An object of that name that somebody made since the look is a conflict. Applied, it would become ours without a word.
    async fn create<K: Child>(&self, name: &str, wanted: &K) -> Part<K> {
        failpoint::held_up("operator::before-create").await;
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        self.api::<K>().create(&parameters, wanted).await.map_err(|error| problem::<K>(name, &error))
    }

    /// Gives up the fields that were created or patched rather than applied: the API server removes a field that is not applied
    /// any more only if nobody else holds it, and to it that is another manager.
    async fn hold_by_apply_alone<K: Child>(&self, name: &str, mut child: K) -> Part<K> {
        let is_update = |entry: &ManagedFieldsEntry| {
            entry.manager.as_deref() == Some(FIELD_MANAGER)
                && entry.operation.as_deref() == Some("Update")
                && entry.subresource.is_none()
        };
        let api = self.api::<K>();
        for _ in 0..GIVING_UP {
            let Some(index) = child.managed_fields().iter().position(is_update) else { return Ok(child) };
            let path = format!("/metadata/managedFields/{index}");
            let patch = json!([
                { "op": "test", "path": "/metadata/uid", "value": child.uid() },
                { "op": "test", "path": format!("{path}/manager"), "value": FIELD_MANAGER },
                { "op": "test", "path": format!("{path}/operation"), "value": "Update" },
                { "op": "remove", "path": path },
            ]);
            let patch = serde_json::from_value(patch).expect("a list of operations is a JSON patch");
            let given_up = match api.patch(name, &as_operator(), &Patch::Json::<()>(patch)).await {
                // A controller wrote meanwhile, and the entry has another place in the list.
                Err(error) if is_invalid(&error) => api.get(name).await,
                answer => answer,
            };
            child = given_up.map_err(|error| problem::<K>(name, &error))?;
        }
        Ok(child)
    }

    async fn patch<K: Child>(&self, name: &str, wanted: &K) -> Part<K> {
        // Forced: a field that both we and another set is ours, or drift would stay.
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

    /// True if that may have helped; see [`ports`].
    async fn replace_ports<K: Child>(&self, name: &str, wanted: &K) -> bool {
        let Some(ports) = ports::replaced(wanted).filter(|_| wanted.meta().uid.is_some()) else { return false };
        let parameters = as_operator();
        self.api::<K>().patch(name, &parameters, &Patch::Strategic(ports)).await.is_ok()
    }

    /// The live child, if it exists and is ours. What the watch does not know is asked for: it sees only what has our label.
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
                format!("{} {name} exists and is not this resource's; it is left alone: remove or rename it", K::KIND),
            )),
            live => Ok(live),
        }
    }

    /// Only what the watch knows: an object that is not ours is of no account here.
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

/// Whether this resource, and not another of its name, controls the child.
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
        // The API server understood: a permission, a quota, a value of the spec that it does not take.
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => Reason::Refused,
        _ => Reason::ApplyFailed,
    };
    Problem::new(reason, format!("{} {name}: {}", K::KIND, explain(error)))
}
