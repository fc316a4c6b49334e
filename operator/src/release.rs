//! `orderflow-operator release`: lets go of all resources before the operator goes for good. One with `deletionPolicy: Delete`
//! waits, once it is deleted, for an operator that removes its data; without any it would wait for ever. The data stay.
//!
//! An operator that runs would put the finalizers back. So the deletions that are under way may end first, then the Lease is
//! taken from it, and no finalizer is removed before it must have noticed. The Lease is not given back: an operator that is
//! started again waits for it to run out, and is removed before that by whoever called this, the chart's hook.

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
    context::{cluster, explain, is_conflict, is_forbidden, is_gone},
    crd::OrderFlow,
    lease::{self, Candidate},
    metrics::Pulse,
    reconcile::finalizer,
    settings::{Release, Scope, this_process},
};

/// How long others keep off after the last renewal: enough for Helm to remove a Deployment, and not much more, since an
/// operator that is installed again waits for it, too.
const HOLD: Duration = Duration::from_secs(30);

/// Who has the Lease meanwhile; more follows.
const IDENTITY: &str = "release-";

/// Whoever edits a resource at the same moment makes us look at it once more, not for ever.
const ROUNDS: usize = 10;

/// Pause between two checks of the deletions that are under way.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// # Errors
/// If a finalizer may be left, or may come back.
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
        format!("{IDENTITY}{}", this_process()),
        HOLD,
        Pulse::default(),
        Dependencies::default().register("Lease", Need::Always),
    );
    let unaware = candidate.seize().await.with_context(|| format!("take the Lease {}", cluster.lease_name))?;
    let work = async {
        // With none to let go of, none can come back either.
        if let Some(unaware) = unaware
            && flows.list().await?.iter().any(may_be_held)
        {
            println!("waiting {} s: by then the operator that led must have ended", unaware.as_secs());
            sleep(unaware).await;
        }
        flows.release().await
    };
    tokio::select! {
        lost = candidate.keep() => Err(lost),
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
    /// None also where there cannot be any: without the definition, or without the namespace.
    async fn list(&self) -> anyhow::Result<Vec<DynamicObject>> {
        // One that does not fit the definition has a finalizer, too.
        let resource = ApiResource::erase::<OrderFlow>(&());
        let api = match &self.scope {
            Scope::All => Api::all_with(self.client.clone(), &resource),
            Scope::Namespace(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
        };
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(list.items),
            Err(error) if is_gone(&error) => Ok(Vec::new()),
            // The permissions went along with the namespace.
            Err(error) if is_forbidden(&error) && self.watches_another() => {
                println!("taken for gone, with its permissions: {}", explain(&error));
                Ok(Vec::new())
            }
            Err(error) => Err(anyhow::anyhow!("list the OrderFlows: {}", explain(&error))),
        }
    }

    fn watches_another(&self) -> bool {
        matches!(&self.scope, Scope::Namespace(namespace) if *namespace != self.own)
    }

    /// Whether an operator has the Lease, dead or alive: it may be one of ours that failed, or nobody.
    async fn operator_may_lead(&self, name: &str) -> anyhow::Result<bool> {
        let lease = lease::leader(self.client.clone(), &self.own, name).await?;
        Ok(lease.as_ref().and_then(lease::holder).is_some_and(|holder| !holder.starts_with(IDENTITY)))
    }

    async fn wait_for_deletions(&self, longest: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut said = false;
        loop {
            let flows = self.list().await?;
            let deleted = |flow: &&DynamicObject| finalizer::has(*flow) && flow.metadata.deletion_timestamp.is_some();
            let waiting: Vec<_> = flows.iter().filter(deleted).map(full_name).collect();
            if waiting.is_empty() || began.elapsed() >= longest {
                return Ok(());
            }
            if !said {
                println!("waiting up to {} s for the deletion of {}", longest.as_secs(), waiting.join(", "));
                said = true;
            }
            sleep(BETWEEN_LOOKS).await;
        }
    }

    async fn release(&self) -> anyhow::Result<()> {
        for round in 0..ROUNDS {
            let mut held = self.list().await?;
            held.retain(finalizer::has);
            if held.is_empty() {
                if round == 0 {
                    println!("no OrderFlow waits for an operator");
                }
                return Ok(());
            }
            for flow in held {
                let name = full_name(&flow);
                match finalizer::set(&self.client, &flow, false).await {
                    Ok(()) if flow.metadata.deletion_timestamp.is_some() => {
                        println!("released {name}, which was being deleted: what was not removed yet stays");
                    }
                    Ok(()) => println!("released {name}: its orders, receipts and events stay when it is deleted"),
                    Err(error) if is_gone(&error) || is_conflict(&error) => {}
                    Err(error) => bail!("release {name}: {}", explain(&error)),
                }
            }
        }
        bail!("finalizers come back: does another operator watch the same resources?")
    }
}

/// It has the finalizer, or an operator that has just seen it is about to give it one.
fn may_be_held(flow: &DynamicObject) -> bool {
    finalizer::has(flow) || flow.data["spec"]["deletionPolicy"] == "Delete"
}

fn full_name(flow: &DynamicObject) -> String {
    format!("{}/{}", flow.namespace().unwrap_or_default(), flow.name_any())
}
