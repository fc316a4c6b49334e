//! `orderflow-operator release`: removes the finalizers of all resources before the operator is removed for good. A
//! resource with `deletionPolicy: Delete` waits on its deletion for an operator that removes its data; without one it
//! would wait forever. The data stay.
//!
//! A running operator would add the finalizers again. So this command first waits for deletions in progress, then takes
//! the Lease, and removes the finalizers when the old leader must have noticed. It does not release the Lease: a
//! restarted operator waits for its expiry, and the caller, the chart's hook, removes the operator before that.

use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams},
    core::ApiResource,
};
use orderflow_service::{Dependencies, Need};
use tokio::time::{Instant, sleep};

use crate::{
    crd::OrderFlow,
    kubernetes::{cluster, explain, is_conflict, is_forbidden, is_gone},
    lease::{self, Candidate},
    metrics::Pulse,
    reconcile::finalizer,
    settings::{Release, Scope, process_name},
};

/// The duration of the Lease after the last renewal. It suffices for Helm to remove a Deployment; longer would delay an
/// operator that is installed again.
const HOLD: Duration = Duration::from_secs(30);

/// The beginning of the identity that holds the Lease during a release.
const IDENTITY: &str = "release-";

/// The number of attempts against concurrent edits of a resource.
const MAX_ATTEMPTS: usize = 10;

/// Pause between two checks of the deletions that are under way.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// # Errors
/// Returns an error if a finalizer may remain or come back.
pub async fn run(settings: &Release) -> anyhow::Result<()> {
    let config = cluster().await?;
    let cluster = &settings.cluster;
    let (own, scope) = (cluster.own_namespace(&config.default_namespace), cluster.scope(&config.default_namespace));
    let flows = Flows { client: Client::try_from(config)?, own, scope };

    if flows.operator_may_lead(&cluster.lease_name).await? {
        flows.wait_for_deletions(Duration::from_secs(settings.wait_seconds.into())).await?;
    }
    let candidate = Candidate::new(
        Api::namespaced(flows.client.clone(), &flows.own),
        &cluster.lease_name,
        format!("{IDENTITY}{}", process_name()),
        HOLD,
        Pulse::default(),
        Dependencies::default().register("Lease", Need::Always),
    );
    let notice_time = candidate.seize().await.with_context(|| format!("take the Lease {}", cluster.lease_name))?;
    let work = async {
        // Without resources to release, none can come back.
        if let Some(notice_time) = notice_time
            && flows.list().await?.iter().any(may_have_finalizer)
        {
            println!("waiting {} s for the end of the operator that led", notice_time.as_secs());
            sleep(notice_time).await;
        }
        flows.release().await
    };
    tokio::select! {
        lost = candidate.renew() => Err(lost),
        released = work => released,
    }
}

/// The resources of one operator.
struct Flows {
    client: Client,
    own: String,
    scope: Scope,
}

impl Flows {
    /// Lists the resources. Returns none if the definition or the namespace is missing.
    async fn list(&self) -> anyhow::Result<Vec<DynamicObject>> {
        // Untyped, because a resource that does not fit the definition has a finalizer as well.
        let resource = ApiResource::erase::<OrderFlow>(&());
        let api = match &self.scope {
            Scope::All => Api::all_with(self.client.clone(), &resource),
            Scope::Namespace(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(list.items),
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            // The permissions were removed together with the namespace.
            Err(error) if is_forbidden(&error) && self.watches_another() => {
                println!("assuming that the namespace was removed with its permissions: {}", explain(&error));
                Ok(Vec::new())
            }
            Err(error) => Err(anyhow::anyhow!("list the OrderFlows: {}", explain(&error))),
        }
    }

    fn watches_another(&self) -> bool {
        matches!(&self.scope, Scope::Namespace(namespace) if *namespace != self.own)
    }

    /// Returns true if an operator, dead or alive, holds the Lease; a failed release does not count.
    async fn operator_may_lead(&self, name: &str) -> anyhow::Result<bool> {
        let lease = lease::leader(self.client.clone(), &self.own, name).await?;
        Ok(lease.as_ref().and_then(lease::holder).is_some_and(|holder| !holder.starts_with(IDENTITY)))
    }

    async fn wait_for_deletions(&self, longest: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut printed = false;
        loop {
            let flows = self.list().await?;
            let deleted = |flow: &&DynamicObject| finalizer::has(*flow) && flow.metadata.deletion_timestamp.is_some();
            let waiting: Vec<_> = flows.iter().filter(deleted).map(full_name).collect();
            if waiting.is_empty() || began.elapsed() >= longest {
                return Ok(());
            }
            if !printed {
                println!("waiting up to {} s for the deletion of {}", longest.as_secs(), waiting.join(", "));
                printed = true;
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn release(&self) -> anyhow::Result<()> {
        for round in 0..MAX_ATTEMPTS {
            let mut remaining = self.list().await?;
            remaining.retain(finalizer::has);
            if remaining.is_empty() {
                if round == 0 {
                    println!("no OrderFlow has a finalizer");
                }
                return Ok(());
            }
            for flow in remaining {
                let name = full_name(&flow);
                match finalizer::set(&self.client, &flow, false).await {
                    Ok(()) if flow.metadata.deletion_timestamp.is_some() => {
                        println!("released {name}, which was being deleted: data that were not removed yet stay");
                    }
                    Ok(()) => println!("released {name}: its orders, receipts and events stay when it is deleted"),
                    Err(error) if is_gone(&error) || is_conflict(&error) => {}
                    Err(error) => bail!("release {name}: {}", explain(&error)),
                }
            }
        }
        bail!("remove the finalizers: they come back; does another operator watch the same resources?")
    }
}

/// Returns true if the resource has the finalizer, or if an operator that has just read it is about to add one.
fn may_have_finalizer(flow: &DynamicObject) -> bool {
    finalizer::has(flow) || flow.data["spec"]["deletionPolicy"] == "Delete"
}

fn full_name(flow: &DynamicObject) -> String {
    format!("{}/{}", flow.namespace().unwrap_or_default(), flow.name_any())
}
