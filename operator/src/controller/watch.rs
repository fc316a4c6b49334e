//! The watches. They maintain the cache and report which resources must be reconciled. Everything except OrderFlows and
//! Deployments is watched by its metadata; of Secrets, nothing else is ever in memory. All objects are trimmed to what
//! a reconcile reads.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::Arc,
};

use futures_util::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ObjectMeta,
    runtime::{
        WatchStreamExt, reflector,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use orderflow_service::{Dependencies, Dependency, Need, Stage};
use serde::de::DeserializeOwned;

use super::Queue;
use crate::{
    build,
    cache::{
        Flow, Metadata, Stores,
        trim::{fingerprint_of_ours, hash, trim, trim_child, trim_deployment},
    },
    kubernetes,
    reconcile::dereference,
    settings::Scope,
};

/// Starts the watches as tasks of `stage`. Each is a dependency, which is up once the watch has listed its objects.
pub fn start(client: &Client, scope: &Scope, queue: &Queue, dependencies: &Dependencies, stage: &Stage) -> Stores {
    let watches = Watches { client, scope, queue, dependencies, stage };
    // A listed page is in memory in full until it is trimmed.
    let all = watcher::Config::default().page_size(50);
    let children = all.clone().labels(&format!("{}={}", build::MANAGED_BY_LABEL, build::MANAGED_BY));
    let flows = watches.start("orderflows", all.clone(), trim, flow_fingerprint, |meta| vec![itself(meta)]);
    let named_by = {
        let flows = flows.clone();
        move |meta: &ObjectMeta| flows_that_name(&flows, meta)
    };
    Stores {
        deployments: watches.start("deployments", children.clone(), trim_deployment, deployment_fingerprint, owners),
        services: watches.start("services", children.clone(), trim_child, child_fingerprint, owners),
        service_accounts: watches.start("serviceaccounts", children.clone(), trim_child, child_fingerprint, owners),
        disruption_budgets: watches.start(
            "poddisruptionbudgets",
            children.clone(),
            trim_child,
            child_fingerprint,
            owners,
        ),
        autoscalers: watches.start("horizontalpodautoscalers", children.clone(), trim_child, child_fingerprint, owners),
        network_policies: watches.start("networkpolicies", children, trim_child, child_fingerprint, owners),
        secrets: watches.start("secrets", all, trim, secret_fingerprint, named_by),
        flows,
    }
}

struct Watches<'a> {
    client: &'a Client,
    scope: &'a Scope,
    queue: &'a Queue,
    dependencies: &'a Dependencies,
    stage: &'a Stage,
}

impl Watches<'_> {
    fn start<K>(
        &self,
        name: &str,
        config: watcher::Config,
        trim: fn(&mut K),
        fingerprint: fn(&K) -> u64,
        concerns: impl Fn(&ObjectMeta) -> Vec<ObjectRef<Flow>> + Send + Sync + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let api: Api<K> = match self.scope {
            Scope::All => Api::all(self.client.clone()),
            Scope::Namespace(namespace) => Api::namespaced(self.client.clone(), namespace),
        };
        let (reader, writer) = reflector::store();
        let dependency = self.dependencies.register(format!("watch of {name}"), Need::Always);
        let changes = Changes { fingerprint, concerns, known: HashMap::new(), listed: HashSet::new() };
        // The cache outlives a watch that dies; the restarted watch lists all objects again.
        let cache = Arc::new(tokio::sync::Mutex::new((changes, writer)));
        let queue = self.queue.clone();
        self.stage.run(format!("watch {name}"), move |stop| {
            let events = watcher(api.clone(), config.clone().any_semantic()).default_backoff().modify(trim);
            let (cache, queue, dependency) = (cache.clone(), queue.clone(), dependency.clone());
            async move {
                let (changes, writer) = &mut *cache.lock().await;
                let mut events = std::pin::pin!(events);
                loop {
                    let event = tokio::select! {
                        event = events.next() => event,
                        () = stop.cancelled() => return Ok(()),
                    };
                    match event {
                        Some(Ok(event)) => {
                            writer.apply_watcher_event(&event);
                            queue.add(changes.affected(event, &dependency));
                        }
                        Some(Err(error)) => dependency.down(explain(&error)),
                        None => return Ok(()),
                    }
                }
            }
        });
        reader
    }
}

/// Finds the resources that an event affects. Most events affect none, such as a change of a child's status or our own
/// write of the status.
struct Changes<K, C> {
    fingerprint: fn(&K) -> u64,
    concerns: C,
    known: HashMap<Key, (u64, Option<Vec<OwnerReference>>)>,
    /// The keys in the listing that is in progress.
    listed: HashSet<Key>,
}

/// A namespace and a name.
type Key = (Option<String>, String);

impl<K: Resource, C: Fn(&ObjectMeta) -> Vec<ObjectRef<Flow>>> Changes<K, C> {
    fn affected(&mut self, event: watcher::Event<K>, dependency: &Dependency) -> Vec<ObjectRef<Flow>> {
        match event {
            watcher::Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                self.listed.insert(key(object.meta()));
                self.record(&object)
            }
            watcher::Event::InitDone => {
                dependency.up();
                // Deleted while the watch was down.
                let gone: Vec<_> = self.known.extract_if(|key, _| !self.listed.contains(key)).collect();
                self.listed = HashSet::new();
                gone.into_iter().flat_map(|(key, (_, owners))| (self.concerns)(&former_meta(key, owners))).collect()
            }
            watcher::Event::Apply(object) => {
                dependency.up();
                self.record(&object)
            }
            watcher::Event::Delete(object) => {
                dependency.up();
                self.known.remove(&key(object.meta()));
                (self.concerns)(object.meta())
            }
        }
    }

    fn record(&mut self, object: &K) -> Vec<ObjectRef<Flow>> {
        let fingerprint = (self.fingerprint)(object);
        let meta = object.meta();
        let mut concerned = (self.concerns)(meta);
        match self.known.insert(key(meta), (fingerprint, meta.owner_references.clone())) {
            Some((before, _)) if before == fingerprint => concerned.clear(),
            // The former owner is affected, too.
            Some((_, owners)) => {
                let before = (self.concerns)(&former_meta(key(meta), owners));
                concerned.extend(before.into_iter().filter(|flow| !concerned.contains(flow)).collect::<Vec<_>>());
            }
            None => {}
        }
        concerned
    }
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone(), meta.name.clone().unwrap_or_default())
}

/// Returns the metadata of an object before its change or deletion, as far as they name a resource.
fn former_meta((namespace, name): Key, owner_references: Option<Vec<OwnerReference>>) -> ObjectMeta {
    ObjectMeta { namespace, name: Some(name), owner_references, ..ObjectMeta::default() }
}

fn itself(meta: &ObjectMeta) -> ObjectRef<Flow> {
    ObjectRef::new(meta.name.as_deref().unwrap_or_default()).within(meta.namespace.as_deref().unwrap_or_default())
}

fn owners(meta: &ObjectMeta) -> Vec<ObjectRef<Flow>> {
    let namespace = meta.namespace.as_deref();
    let owners = meta.owner_references.iter().flatten();
    owners.filter_map(|owner| ObjectRef::from_owner_ref(namespace, owner, ())).collect()
}

/// Returns all resources that name the Secret.
fn flows_that_name(flows: &Store<Flow>, secret: &ObjectMeta) -> Vec<ObjectRef<Flow>> {
    let Some(name) = secret.name.as_deref() else { return Vec::new() };
    let names = |flow: &Flow| {
        flow.namespace() == secret.namespace
            && flow.0.as_ref().is_ok_and(|flow| dereference::names(&flow.spec).contains(name))
    };
    flows.state().iter().filter(|flow| names(flow)).map(|flow| ObjectRef::from_obj(flow.as_ref())).collect()
}

/// Hashes everything that users write, and nothing that the operator writes.
fn flow_fingerprint(flow: &Flow) -> u64 {
    let meta = flow.meta();
    hash(&(&meta.uid, meta.generation, &meta.annotations, &meta.finalizers, deleted(meta), flow.0.is_err()))
}

fn secret_fingerprint(secret: &Metadata<Secret>) -> u64 {
    hash(&(&secret.metadata.uid, &secret.metadata.resource_version))
}

fn child_fingerprint<K>(child: &Metadata<K>) -> u64 {
    hash(&fingerprint_of_ours(&child.metadata))
}

/// Hashes the status as well, because it shows whether the pods are available.
fn deployment_fingerprint(deployment: &Deployment) -> u64 {
    let status = deployment.status.as_ref().map(|status| {
        let conditions: Vec<_> = status
            .conditions
            .iter()
            .flatten()
            .map(|condition| (&condition.type_, &condition.status, &condition.reason))
            .collect();
        let counts = [status.replicas, status.ready_replicas, status.available_replicas, status.updated_replicas];
        (status.observed_generation, counts, hash(&conditions))
    });
    hash(&(fingerprint_of_ours(&deployment.metadata), deployment.metadata.generation, status))
}

fn deleted(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

fn explain(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => kubernetes::explain(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        other @ watcher::Error::NoResourceVersion => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
    use serde_json::json;

    use super::*;
    use crate::kubernetes::FIELD_MANAGER;

    fn child(manager: &str, fields: serde_json::Value) -> Metadata<Service> {
        let entry = ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some("Apply".to_owned()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        };
        let metadata = ObjectMeta {
            name: Some("main-producer".to_owned()),
            managed_fields: Some(vec![entry]),
            ..ObjectMeta::default()
        };
        Metadata { types: None, metadata, _phantom: std::marker::PhantomData }
    }

    #[test]
    fn only_a_change_of_our_fields_and_a_deletion_affect_a_resource() {
        let dependency = Dependencies::default().register("watch", Need::Always);
        let mut changes = Changes {
            fingerprint: child_fingerprint,
            concerns: |meta: &ObjectMeta| vec![itself(meta)],
            known: HashMap::new(),
            listed: HashSet::new(),
        };
        let mut affected = |event| changes.affected(event, &dependency).len();
        let ours = || child(FIELD_MANAGER, json!({"f:spec": {"f:ports": {}}}));
        assert_eq!(affected(watcher::Event::Apply(ours())), 1);
        assert_eq!(affected(watcher::Event::Apply(ours())), 0);
        assert_eq!(affected(watcher::Event::Apply(child(FIELD_MANAGER, json!({})))), 1);
        assert_eq!(affected(watcher::Event::Apply(child("kubectl", json!({})))), 1);
        assert_eq!(affected(watcher::Event::Apply(child("kubectl", json!({"f:spec": {}})))), 0);
        assert_eq!(affected(watcher::Event::Delete(ours())), 1);
        // Deleted while the watch was down.
        assert_eq!(affected(watcher::Event::Apply(ours())), 1);
        assert_eq!(affected(watcher::Event::Init) + affected(watcher::Event::InitDone), 1);
    }
}
