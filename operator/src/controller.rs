//! When a resource is looked at: whenever it, one of its children or a Secret that it names changes, and again after a
//! while. Never twice at the same time, and all that changes meanwhile is one more look.

mod queue;
pub mod watch;

use std::{collections::HashSet, convert::Infallible, future::Future, sync::Arc, time::Duration};

use futures_util::StreamExt;
use kube::{
    ResourceExt,
    runtime::controller::{Action, Config, Error, applier},
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

/// Reconciles until `stop` is cancelled, and ends when what had begun by then is done. The watches of `live` must run.
pub async fn run(context: Arc<Context>, queue: Queue, concurrency: u16, stop: CancellationToken) {
    let stores = &context.stores;
    tokio::select! {
        () = stores.wait_until_listed() => {}
        () = stop.cancelled() => return,
    }
    tracing::info!(resources = stores.flows.len(), "caches synced");
    let requests = queue.requests(stop);
    let store = stores.flows.clone();
    let config = Config::default().concurrency(concurrency);
    let look = |flow, context| Box::pin(on_own_task(flow, context));
    applier(look, reconcile::retry, Arc::clone(&context), store, requests, config)
        .for_each(|outcome| async {
            match outcome {
                // What failed was logged where it was handled.
                Ok(_) | Err(Error::ReconcilerFailed(..)) => {}
                Err(Error::ObjectNotFound(gone)) => {
                    context.metrics.gone(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
                    let left: HashSet<_> = context.stores.flows.state().iter().filter_map(|flow| flow.uid()).collect();
                    context.states.retain(|uid| left.contains(uid));
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
