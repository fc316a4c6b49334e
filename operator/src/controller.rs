//! When a resource is looked at: whenever it, one of its children or a Secret that it names changes, and again after a
//! while. Never twice at the same time, and all that changes meanwhile is one more look.

pub mod kept;
mod queue;
pub mod watch;

use std::{collections::HashSet, convert::Infallible, sync::Arc};

use futures_util::StreamExt;
use kube::{
    ResourceExt,
    runtime::controller::{Action, Config, Error, applier},
};
use orderflow_service::shutdown::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use queue::Queue;
pub use watch::{Flow, Live};

use crate::{context::Context, reconcile};

/// Reconciles until `stop` is cancelled, and ends when what had begun by then is done. The watches of `live` must run.
pub async fn run(context: Arc<Context>, queue: Queue, concurrency: u16, stop: CancellationToken) {
    let live = &context.live;
    tokio::select! {
        () = live.wait_until_listed() => {}
        () = stop.cancelled() => return,
    }
    tracing::info!(resources = live.flows.len(), "all that is there is known");
    let requests = queue.requests(stop);
    let store = live.flows.clone();
    let config = Config::default().concurrency(concurrency);
    let look = |flow, context| Box::pin(on_own_task(flow, context));
    applier(look, reconcile::retry, Arc::clone(&context), store, requests, config)
        .for_each(|outcome| async {
            match outcome {
                // What failed was logged where it was handled.
                Ok(_) | Err(Error::ReconcilerFailed(..)) => {}
                Err(Error::ObjectNotFound(gone)) => {
                    context.metrics.gone(gone.namespace.as_deref().unwrap_or_default(), &gone.name);
                    let left: HashSet<_> = context.live.flows.state().iter().filter_map(|flow| flow.uid()).collect();
                    context.memories.keep(|uid| left.contains(uid));
                }
                Err(error) => tracing::error!(%error, "the controller's queue failed"),
            }
        })
        .await;
}

/// The controller asks all looks that are under way whether they can go on, whenever one of them can.
async fn on_own_task(flow: Arc<Flow>, context: Arc<Context>) -> Result<Action, Infallible> {
    match AbortOnDropHandle::new(tokio::spawn(reconcile::reconcile(flow, context))).await {
        Ok(answer) => answer,
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}
