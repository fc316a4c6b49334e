//! Reconciles one resource, step by step; each step has a file. A step that fails for one part (a shard, the bucket) does
//! not affect the other parts, and the status reports every part.

pub mod adoption;
pub mod apply;
pub mod backends;
pub mod claims;
pub mod context;
pub mod delete;
pub mod dereference;
pub mod event;
pub mod finalizer;
pub mod key;
pub mod outcome;
pub mod provision;
pub mod provisioned;
pub mod resource_state;
pub mod status;
pub mod undecodable;
pub mod validate;
pub mod workload;

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Resource, ResourceExt, runtime::controller::Action};
use orderflow_service::failpoint;
use tracing::Instrument;

use crate::{
    build,
    cache::Flow,
    condition::{Problem, Reason},
    crd::{OrderFlow, PAUSED, is_set},
    kubernetes::is_conflict,
    pipeline::Identity,
};
use context::Context;
use outcome::{DEADLINE, Error, Requeue};
use resource_state::ResourceState;
use status::Report;

/// The delay before a backend whose first failure was suppressed is probed again.
const SUPPRESSED: Duration = Duration::from_secs(1);

/// Reconciles one resource. The controller never calls it concurrently for the same one.
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
        let state = context.states.get_or_create(&uid);
        let mut state = state.lock().await;
        let steps = tokio::time::timeout(DEADLINE, run(&flow, &context, &mut state));
        let outcome = steps.await.unwrap_or(Err(Error::Deadline));
        context.metrics.reconciled(began);
        let requeue = match outcome {
            Ok(requeue) => requeue,
            Err(Error::Status(error) | Error::Finalizer(error)) if is_conflict(&error) => Requeue::In(Duration::ZERO),
            Err(error) => {
                context.metrics.failed(error.step());
                let delay = state.retry_delay();
                tracing::warn!(%error, retry_ms = delay.as_millis() as u64, "reconcile failed");
                return Ok(Action::requeue(delay));
            }
        };
        if requeue != Requeue::Backoff {
            state.record_success();
        }
        tracing::debug!(duration_ms = began.elapsed().as_millis() as u64, ?requeue, "reconciled");
        Ok(match requeue {
            Requeue::Never => Action::await_change(),
            Requeue::Probe => Action::requeue(jittered(context.probe_interval)),
            Requeue::Backoff => Action::requeue(state.retry_delay()),
            Requeue::In(delay) => Action::requeue(delay),
        })
    }
    .instrument(span)
}

/// Handles a panic of a resource's reconcile: reports it in the status and retries with backoff. Other resources are not
/// affected.
pub async fn panicked(flow: Arc<Flow>, context: Arc<Context>) -> Action {
    context.metrics.panicked();
    let state = context.states.get_or_create(&flow.uid().unwrap_or_default());
    let mut state = state.lock().await;
    state.forget();
    if let Ok(flow) = &flow.0 {
        // The status leaves out the panic's message: a library's text may contain anything.
        let text = "a bug in the operator: the reconcile panicked; its log has a line with the backtrace";
        let report = Report::Panicked(Problem::new(Reason::InternalError, text));
        let written = tokio::time::timeout(DEADLINE, status::write(&context, flow, &mut state, &report)).await;
        if let Err(error) = written.unwrap_or(Err(Error::Deadline)) {
            tracing::warn!(%error, resource = flow.name_any(), "cannot write the status after a panic");
        }
    }
    Action::requeue(state.retry_delay())
}

/// Satisfies the controller, which requires an error policy; [`reconcile`] has handled every error.
pub fn retry(_: Arc<Flow>, never: &Infallible, _: Arc<Context>) -> Action {
    match *never {}
}

async fn run(flow: &Flow, context: &Context, state: &mut ResourceState) -> Result<Requeue, Error> {
    let flow = match &flow.0 {
        Ok(flow) => flow,
        Err(invalid) => return undecodable::report(context, invalid, state).await,
    };
    let identity = identity(flow);
    failpoint::panics("operator::reconcile", &identity.owner());
    if flow.metadata.deletion_timestamp.is_some() {
        return delete::delete(context, flow, identity, state).await;
    }
    finalizer::sync(context, flow).await?;
    if is_set(flow, PAUSED) {
        return status::write(context, flow, state, &Report::Paused).await;
    }
    let secrets =
        dereference::dereference(&context.client, &identity.namespace, &flow.spec).await.map_err(Error::Dereference)?;
    let adoption = adoption::read(flow, &context.stores);
    let pipeline =
        match validate::validate(identity, adoption, &flow.spec, &secrets, &context.images, &context.backends) {
            Ok(pipeline) => pipeline,
            Err(problem) => return status::write(context, flow, state, &Report::Invalid(problem)).await,
        };
    let provisioned = provision::provision(context, flow, &pipeline, state).await;
    let workloads = match pipeline.unresolved() {
        Some(problem) => workload::blocked(context, &pipeline, problem),
        None => {
            let children = build::build(&pipeline, &context.key);
            let gates = workload::gates(&provisioned);
            apply::apply(context, &pipeline, children, &gates, state).await
        }
    };
    let report = Report::Reconciled { pipeline: &pipeline, provisioned: &provisioned, workloads };
    let requeue = status::write(context, flow, state, &report).await?;
    Ok(if provisioned.suppressed && requeue == Requeue::Probe { Requeue::In(SUPPRESSED) } else { requeue })
}

fn identity(flow: &OrderFlow) -> Identity {
    Identity {
        namespace: flow.namespace().unwrap_or_default(),
        name: flow.name_any(),
        uid: flow.uid().unwrap_or_default(),
        generation: flow.metadata.generation.unwrap_or(0),
    }
}

/// Spreads an interval by 10 %, so that resources that were created together are not probed together.
fn jittered(interval: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) % 2001;
    interval.mul_f64(0.9 + random as f64 / 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_spread_by_a_tenth() {
        let interval = Duration::from_secs(60);
        let spread: Vec<Duration> = (0..100).map(|_| jittered(interval)).collect();
        assert!(spread.iter().all(|delay| (54..=66).contains(&delay.as_secs())));
        assert!(spread.iter().any(|delay| *delay != spread[0]));
    }
}
