//! Decides when a resource is reconciled: when it, one of its children or a Secret that it names changes, and after a
//! while. A resource is never reconciled concurrently. All changes during a reconcile cause exactly one more.

mod queue;
pub mod watch;

use std::{collections::HashSet, convert::Infallible, future::Future, sync::Arc, time::Duration};

use futures_util::StreamExt;
use kube::{
    ResourceExt,
    runtime::{
        controller::{Action, Config, Error, applier},
        reflector::ObjectRef,
    },
};
use orderflow_service::shutdown::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use queue::Queue;

use crate::{
    cache::Flow,
    reconcile::{self, context::Context},
};

/// Delay until the next reconcile of a resource if handling the panic of its reconcile panics as well.
const AFTER_TWO_PANICS: Duration = Duration::from_secs(60);

/// Reconciles until `stop` is cancelled, and returns when the running reconciles are done. The watches must be running.
pub async fn run(context: Arc<Context>, queue: Queue, concurrency: u16, stop: CancellationToken) {
    let stores = &context.stores;
    tokio::select! {
        () = stores.wait_until_listed() => {}
        () = stop.cancelled() => return,
    }
    tracing::info!(resources = stores.flows.len(), "caches synced");
    let requests = queue.clone().requests(stop);
    let store = stores.flows.clone();
    let config = Config::default().concurrency(concurrency);
    let reconciler = |flow: Arc<Flow>, context| {
        queue.started(&ObjectRef::from_obj(&*flow));
        Box::pin(on_own_task(flow, context))
    };
    applier(reconciler, reconcile::retry, Arc::clone(&context), store, requests, config)
        .for_each(|outcome| async {
            match outcome {
                // Failures are logged where they are handled.
                Ok(_) | Err(Error::ReconcilerFailed(..)) => {}
                Err(Error::ObjectNotFound(gone)) => {
                    let namespace = gone.namespace.clone().unwrap_or_default();
                    queue.started(&ObjectRef::new(&gone.name).within(&namespace));
                    context.metrics.remove(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
                    let existing: HashSet<_> =
                        context.stores.flows.state().iter().filter_map(|flow| flow.uid()).collect();
                    context.states.retain(|uid| existing.contains(uid));
                }
                Err(error) => tracing::error!(%error, "the controller's queue failed"),
            }
        })
        .await;
}

/// Reconciles on a separate task, since the controller polls all running reconciles whenever one of them can proceed.
/// Catches a panic, which in the controller's own task would end the operator for every resource.
async fn on_own_task(flow: Arc<Flow>, context: Arc<Context>) -> Result<Action, Infallible> {
    let reconciled = spawned(reconcile::reconcile(Arc::clone(&flow), Arc::clone(&context)));
    if let Ok(answer) = reconciled.await {
        return answer;
    }
    // This writes the status, which may panic again.
    Ok(spawned(reconcile::panicked(flow, context)).await.unwrap_or(Action::requeue(AFTER_TWO_PANICS)))
}

fn spawned<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(work))
}
