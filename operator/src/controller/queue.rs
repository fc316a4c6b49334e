//! The queue of resources that wait for a reconcile. Each is in it at most once, so the number of resources bounds it,
//! and adding never blocks.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{Stream, stream};
use kube::runtime::{controller::ReconcileRequest, reflector::ObjectRef};
use orderflow_service::{prometheus::metrics::gauge::Gauge, shutdown::CancellationToken};
use tokio::sync::Notify;

use crate::cache::Flow;

/// A queue that is cheap to clone; clones share it.
#[derive(Clone, Default)]
pub struct Queue {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    waiting: Mutex<HashSet<ObjectRef<Flow>>>,
    added: Notify,
    /// Resources whose reconcile has not started: the controller takes all from `waiting` at once and starts as many as
    /// may run at the same time.
    unstarted: Mutex<HashSet<ObjectRef<Flow>>>,
    depth: Gauge,
}

impl Queue {
    /// Creates a queue that keeps the number of resources that wait in `depth`.
    pub fn new(depth: Gauge) -> Self {
        Self { inner: Arc::new(Inner { depth, ..Inner::default() }) }
    }

    pub fn add(&self, resources: impl IntoIterator<Item = ObjectRef<Flow>>) {
        let mut waiting = self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unstarted = self.inner.unstarted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = waiting.len();
        for resource in resources {
            unstarted.insert(resource.clone());
            waiting.insert(resource);
        }
        self.inner.depth.set(unstarted.len() as i64);
        drop(unstarted);
        if waiting.len() > before {
            self.inner.added.notify_one();
        }
    }

    fn take(&self) -> Option<ObjectRef<Flow>> {
        let mut waiting = self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let next = waiting.iter().next().cloned()?;
        waiting.take(&next)
    }

    /// Records that the reconcile of a resource starts, or that there is nothing to reconcile.
    pub fn started(&self, resource: &ObjectRef<Flow>) {
        let mut unstarted = self.inner.unstarted.lock().unwrap_or_else(PoisonError::into_inner);
        unstarted.remove(resource);
        self.inner.depth.set(unstarted.len() as i64);
    }

    /// Returns the waiting resources and those that are added, until `stop` is cancelled. Supports one reader only.
    pub fn requests(
        self,
        stop: CancellationToken,
    ) -> impl Stream<Item = Result<ReconcileRequest<Flow>, Infallible>> + Send + 'static {
        stream::unfold((self, stop), |(queue, stop)| async move {
            loop {
                if stop.is_cancelled() {
                    return None;
                }
                if let Some(next) = queue.take() {
                    return Some((Ok(next.into()), (queue, stop)));
                }
                tokio::select! {
                    () = queue.inner.added.notified() => {}
                    () = stop.cancelled() => {}
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_resource_waits_once_and_the_queue_ends_when_stopped() {
        let (queue, stop) = (Queue::default(), CancellationToken::new());
        let resource = |name: &str| ObjectRef::<Flow>::new(name).within("shop");
        for _ in 0..3 {
            queue.add([resource("one"), resource("two")]);
        }
        let mut requests = std::pin::pin!(queue.clone().requests(stop.clone()));
        let mut names = Vec::new();
        for _ in 0..2 {
            names.push(requests.next().await.unwrap().unwrap().obj_ref.name);
        }
        names.sort();
        assert_eq!(names, ["one", "two"]);
        // Added during its reconcile, it is reconciled once more.
        queue.add([resource("one")]);
        assert_eq!(requests.next().await.unwrap().unwrap().obj_ref.name, "one");
        stop.cancel();
        assert!(requests.next().await.is_none());
    }
}
