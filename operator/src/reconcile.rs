//! What is done for one resource: its steps, one after the other, each in a file of its own. A step that fails for one part
//! (a shard, the bucket) leaves the others alone, and the status always says what came of it all.

pub mod adoption;
pub mod apply;
pub mod backends;
pub mod claims;
pub mod delete;
pub mod dereference;
pub mod event;
pub mod finalizer;
pub mod key;
pub mod provision;
pub mod status;
pub mod undecodable;
pub mod validate;
pub mod workload;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Resource, ResourceExt,
    runtime::{controller::Action, reflector::ObjectRef},
};
use orderflow_service::failpoint;
use tracing::Instrument;

use crate::{
    build,
    condition::{Class, Problem, Reason},
    context::{Context, explain, is_conflict},
    controller::Flow,
    crd::{OrderFlow, PAUSED},
    memory::Memory,
};
use adoption::Adoption;
use status::Report;
use validate::Identity;

/// Longest time that one look may take. The longest step is a migration, and that bounds itself.
const DEADLINE: Duration = Duration::from_secs(180);

/// How soon something is asked again that was well and did not answer once.
const DOUBT: Duration = Duration::from_secs(1);

/// Why a look could not be finished: the API server did not do what a step asked of it. The variant is the step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the Secrets: {}", explain(.0))]
    Dereference(#[source] kube::Error),
    #[error("keep the finalizer: {}", explain(.0))]
    Finalizer(#[source] kube::Error),
    #[error("remove what belongs to the resource: {}", explain(.0))]
    Delete(#[source] kube::Error),
    #[error("write the status: {}", explain(.0))]
    Status(#[source] kube::Error),
    #[error("not done after {} s", DEADLINE.as_secs())]
    Deadline,
}

/// When to look again, if nothing changes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    Never,
    /// With the next probe.
    Probe,
    /// After the backoff.
    Backoff,
    /// Soon, and not because something failed.
    In(Duration),
}

/// Called for each resource that has to be looked at, never twice at once for the same.
pub fn reconcile(
    flow: Arc<Flow>,
    context: Arc<Context>,
) -> impl Future<Output = Result<Action, Infallible>> + Send + 'static {
    let (namespace, name) = (flow.namespace().unwrap_or_default(), flow.name_any());
    let span =
        tracing::info_span!("reconcile", resource = format!("{namespace}/{name}"), generation = flow.meta().generation);
    async move {
            let began = Instant::now();
            let uid = flow.uid().unwrap_or_default();
            let memory = context.memories.of(&uid);
            let mut memory = memory.lock().await;
            let look = tokio::time::timeout(DEADLINE, look(&flow, &context, &mut memory));
            let outcome = look.await.unwrap_or(Err(Error::Deadline));
            context.metrics.reconciled(began);
            let again = match outcome {
                Ok(again) => again,
                Err(Error::Status(error) | Error::Finalizer(error)) if is_conflict(&error) => Again::In(Duration::ZERO),
                Err(error) => {
                    let delay = memory.retry_delay();
                    tracing::warn!(%error, retry_ms = delay.as_millis() as u64, "the look at the resource was not finished");
                    return Ok(Action::requeue(delay));
                }
            };
            if again != Again::Backoff {
                memory.nothing_failed();
            }
            tracing::debug!(duration_ms = began.elapsed().as_millis() as u64, ?again, "looked at");
            Ok(match again {
                Again::Never => Action::await_change(),
                Again::Probe => Action::requeue(jittered(context.probe_interval)),
                Again::Backoff => Action::requeue(memory.retry_delay()),
                Again::In(delay) => Action::requeue(delay),
            })
        }
    .instrument(span)
}

/// Handles a panic of a resource's reconcile: reports it in the status and retries with backoff. Other resources are not
/// affected.
pub async fn panicked(flow: Arc<Flow>, context: Arc<Context>) -> Action {
    context.metrics.panicked();
    let memory = context.memories.of(&flow.uid().unwrap_or_default());
    let mut memory = memory.lock().await;
    memory.forget();
    if let Ok(flow) = &flow.0 {
        // The status leaves out the panic's message: a library's text may contain anything.
        let text = "a bug in the operator: the reconcile panicked; its log has a line with the backtrace";
        let report = Report::Panicked(Problem::new(Reason::InternalError, text));
        let written = tokio::time::timeout(DEADLINE, status::write(&context, flow, &mut memory, &report)).await;
        if let Err(error) = written.unwrap_or(Err(Error::Deadline)) {
            tracing::warn!(%error, resource = flow.name_any(), "the status after a panic could not be written");
        }
    }
    Action::requeue(memory.retry_delay())
}

/// The controller wants one; every error has been dealt with in [`reconcile`].
pub fn retry(_: Arc<Flow>, never: &Infallible, _: Arc<Context>) -> Action {
    match *never {}
}

async fn look(flow: &Flow, context: &Context, memory: &mut Memory) -> Result<Again, Error> {
    let flow = match &flow.0 {
        Ok(flow) => flow,
        Err(invalid) => return undecodable::say(context, invalid, memory).await,
    };
    let identity = identity(flow);
    failpoint::panics("operator::reconcile", &identity.owner());
    if flow.metadata.deletion_timestamp.is_some() {
        return delete::delete(context, flow, identity, memory).await;
    }
    finalizer::keep(context, flow).await?;
    if is_set(flow, PAUSED) {
        return status::write(context, flow, memory, &Report::Paused).await;
    }
    let secrets =
        dereference::dereference(&context.client, &identity.namespace, &flow.spec).await.map_err(Error::Dereference)?;
    let adoption = Adoption::of(flow, &context.live);
    let pipeline =
        match validate::validate(identity, adoption, &flow.spec, &secrets, &context.images, &context.backends) {
            Ok(pipeline) => pipeline,
            Err(problem) => return status::write(context, flow, memory, &Report::Invalid(problem)).await,
        };
    let provisioned = provision::provision(context, flow, &pipeline, memory).await;
    let workloads = match pipeline.unresolved() {
        Some(problem) => workload::held(context, &pipeline, problem),
        None => {
            let children = build::build(&pipeline, &context.key);
            let gates = workload::gates(&provisioned);
            apply::apply(context, &pipeline, children, &gates, memory).await
        }
    };
    let report = Report::Looked { pipeline: &pipeline, provisioned: &provisioned, workloads };
    let again = status::write(context, flow, memory, &report).await?;
    Ok(if provisioned.doubted && again == Again::Probe { Again::In(DOUBT) } else { again })
}

fn identity(flow: &OrderFlow) -> Identity {
    Identity {
        namespace: flow.namespace().unwrap_or_default(),
        name: flow.name_any(),
        uid: flow.uid().unwrap_or_default(),
        generation: flow.metadata.generation.unwrap_or(0),
    }
}

fn is_set(flow: &impl ResourceExt, annotation: &str) -> bool {
    flow.annotations().get(annotation).is_some_and(|value| value == "true")
}

/// The most urgent of several problems decides when to look again.
pub fn again(classes: impl IntoIterator<Item = Class>) -> Again {
    let mut again = Again::Probe;
    for class in classes {
        match class {
            Class::Fine | Class::WaitForChange | Class::NeedsUser => {}
            Class::Transient => again = Again::Backoff,
            Class::Conflict => return Again::In(Duration::ZERO),
        }
    }
    again
}

/// ± 10 %, so that many resources that were made together are not looked at together for ever.
fn jittered(interval: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) % 2001;
    interval.mul_f64(0.9 + random as f64 / 10_000.0)
}

/// How the stores know a child of this resource.
pub fn child<K: kube::Resource<DynamicType = ()>>(identity: &Identity, name: &str) -> ObjectRef<K> {
    ObjectRef::new(name).within(&identity.namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_problem_decides_when_to_look_again() {
        for (classes, expected) in [
            (&[][..], Again::Probe),
            (&[Class::Fine, Class::WaitForChange, Class::NeedsUser], Again::Probe),
            (&[Class::Transient, Class::NeedsUser], Again::Backoff),
            (&[Class::Transient, Class::Conflict], Again::In(Duration::ZERO)),
        ] {
            assert_eq!(again(classes.iter().copied()), expected, "{classes:?}");
        }
    }

    #[test]
    fn probes_are_spread_by_a_tenth() {
        let interval = Duration::from_secs(60);
        let spread: Vec<Duration> = (0..100).map(|_| jittered(interval)).collect();
        assert!(spread.iter().all(|delay| (54..=66).contains(&delay.as_secs())));
        assert!(spread.iter().any(|delay| *delay != spread[0]));
    }
}
