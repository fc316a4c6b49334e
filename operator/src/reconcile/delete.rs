//! Cleans up after a deleted resource. With `Retain` it removes nothing: the API server's garbage collection removes
//! the children. With `Delete` it stops the pods, then removes their data: topics and group, receipts and bucket, and
//! last the tables, which record the owner. It reads the policy again before and during each step, because a removal
//! cannot be undone. After the deadline a Warning names what remains, and the resource is released: nobody should have
//! to edit a finalizer because a server is gone.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use k8s_openapi::{
    api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Condition,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch},
    core::PartialObjectMeta,
    runtime::reflector::ObjectRef,
};
use orderflow_provision::{bucket, shard, topics};
use orderflow_service::s3;
use serde_json::json;

use super::{
    apply::is_ours,
    context::Context,
    dereference,
    event::{self, Severity},
    finalizer,
    outcome::{Error, Requeue},
    provision::{bucket_reason, bucket_settings, claim, shard_reason, topic_reason},
    resource_state::{Removal, ResourceState},
    status::{self, Report},
    validate,
};
use crate::{
    build,
    condition::{Class, Kind, Problem, Reason},
    crd::{DeletionPolicy, OrderFlow, OrderFlowStatus, PAUSED, is_set},
    kubernetes::{as_operator, is_gone},
    pipeline::{Adoption, Identity, Pipeline},
};

/// The interval of the checks whether the pods have ended.
const PODS: Duration = Duration::from_secs(2);

/// The time that follows the first attempt even if the deadline has passed: for pods in every process, for failures in
/// the first process that tries. After a pause or an outage of the operator, the first failure must not be the last.
const GRACE: Duration = Duration::from_secs(60);

/// The interval of the checks for a change of the policy during a step.
const INTERRUPTION: Duration = Duration::from_secs(1);

/// The reason why a deletion does not continue for now.
enum Halt {
    /// The policy keeps what is not removed yet.
    Retain,
    /// The annotation pauses the deletion.
    Paused,
    /// The resource no longer exists.
    Gone,
    /// The step was interrupted by the policy, which has changed back since.
    Changed,
    Failed(Error),
}

pub async fn delete(
    context: &Context,
    flow: &OrderFlow,
    identity: Identity,
    state: &mut ResourceState,
) -> Result<Requeue, Error> {
    if !finalizer::has(flow) {
        context.metrics.remove(&identity.namespace, &identity.name);
        return Ok(Requeue::Never);
    }
    let owner = identity.owner();
    match clean_up(context, flow, identity, state).await {
        Ok(requeue) => Ok(requeue),
        Err(Halt::Retain) => {
            let note = format!(
                "deletionPolicy is Retain: everything that was not removed before stays and belongs to {owner}"
            );
            event::emit(context, flow, Severity::Normal, "Retained", "Delete", &note).await;
            remove_finalizer(context, flow).await
        }
        Err(Halt::Paused) => {
            state.removal = None;
            status::write(context, flow, state, &Report::DeletionPaused).await?;
            Ok(Requeue::Probe)
        }
        Err(Halt::Gone) => Ok(Requeue::Never),
        Err(Halt::Changed) => Ok(Requeue::In(INTERRUPTION)),
        Err(Halt::Failed(error)) => Err(error),
    }
}

async fn clean_up(
    context: &Context,
    flow: &OrderFlow,
    identity: Identity,
    state: &mut ResourceState,
) -> Result<Requeue, Halt> {
    require_wanted(context, flow).await?;
    let deadline = context.cleanup_deadline;
    let is_first = || !was_tried(&status::last_known(flow, state));
    let removal = state.removal.unwrap_or_else(|| Removal { began: Instant::now(), is_first: is_first() });
    state.removal = Some(removal);
    let overdue = is_overdue(flow, Timestamp::now(), deadline);
    let grace = GRACE.min(deadline);
    let has_waited = removal.began.elapsed() > grace;
    let last = overdue && (has_waited || !removal.is_first);

    stop_pods(context, &identity).await.map_err(Error::Delete)?;
    let pods = pods(context, &identity).await.map_err(Error::Delete)?;
    // Processes that live shortly do not prolong it for ever.
    let is_pods_time_over = has_waited || is_overdue(flow, Timestamp::now(), deadline + 2 * grace);
    if pods > 0 && !(overdue && is_pods_time_over) {
        let report = Report::Deleting(format!("{pods} pods still exist"));
        status::write(context, flow, state, &report).await?;
        return Ok(Requeue::In(PODS));
    }

    let mut remaining = remove(context, flow, identity, last).await?;
    if pods > 0 {
        remaining.push(Problem::new(Reason::Unreachable, format!("{pods} pods still existed")));
    }
    let message = remaining.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ");
    if remaining.iter().any(|problem| problem.class() == Class::Transient) && !last {
        let report = Report::Deleting(format!("not removed yet: {message}"));
        status::write(context, flow, state, &report).await?;
        return Ok(Requeue::Backoff);
    }
    if remaining.is_empty() {
        tracing::info!("removed all data of the resource");
    } else {
        event::emit(
            context,
            flow,
            Severity::Warning,
            "CleanupIncomplete",
            "Delete",
            &format!("not removed: {message}"),
        )
        .await;
    }
    Ok(remove_finalizer(context, flow).await?)
}

async fn remove_finalizer(context: &Context, flow: &OrderFlow) -> Result<Requeue, Error> {
    match finalizer::set(&context.client, flow, false).await {
        Err(error) if !is_gone(&error) => Err(Error::Finalizer(error)),
        _ => Ok(Requeue::Never),
    }
}

/// Returns true if the status shows that an earlier process has tried. An operator that restarts often would otherwise
/// never release the resource.
fn was_tried(status: &OrderFlowStatus) -> bool {
    let is = |kind: Kind, test: &dyn Fn(&Condition) -> bool| {
        status.conditions.iter().any(|condition| condition.type_ == kind.as_str() && test(condition))
    };
    is(Kind::Ready, &|ready| ready.reason == Reason::Deleting.as_str())
        && !is(Kind::Paused, &|paused| paused.status == "True")
}

/// Returns true if the deadline has passed since the deletion, by the API server's clock: a deadline that restarts with
/// each process of the operator might never pass.
fn is_overdue(flow: &OrderFlow, now: Timestamp, deadline: Duration) -> bool {
    let deadline = SignedDuration::try_from(deadline).unwrap_or(SignedDuration::MAX);
    let deleted = flow.metadata.deletion_timestamp.as_ref();
    deleted.is_some_and(|deleted| now.duration_since(deleted.0) > deadline)
}

/// Requires that the policy still wants the removal. Asks the API server, because the watch may be behind.
async fn require_wanted(context: &Context, flow: &OrderFlow) -> Result<(), Halt> {
    let api: Api<OrderFlow> = Api::namespaced(context.client.clone(), &flow.namespace().unwrap_or_default());
    match api.get_opt(&flow.name_any()).await.map_err(Error::Delete)? {
        Some(live) if live.uid() == flow.uid() => halt(&live).map_or(Ok(()), Err),
        _ => Err(Halt::Gone),
    }
}

fn halt(live: &OrderFlow) -> Option<Halt> {
    if live.spec.deletion_policy == DeletionPolicy::Retain {
        Some(Halt::Retain)
    } else {
        is_set(live, PAUSED).then_some(Halt::Paused)
    }
}

/// Runs a step of the removal, and cancels it when the policy no longer wants it. A full bucket takes minutes.
async fn step<T>(context: &Context, flow: &OrderFlow, work: impl Future<Output = T>) -> Result<T, Halt> {
    require_wanted(context, flow).await?;
    let key = ObjectRef::new(&flow.name_any()).within(&flow.namespace().unwrap_or_default());
    let unwanted = async {
        loop {
            tokio::time::sleep(INTERRUPTION).await;
            let known = context.stores.flows.get(&key);
            if known.is_some_and(|known| known.0.as_ref().is_ok_and(|known| halt(known).is_some())) {
                return;
            }
        }
    };
    tokio::select! {
        done = work => Ok(done),
        () = unwanted => {
            require_wanted(context, flow).await?;
            Err(Halt::Changed)
        }
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The autoscaler goes first; it would start them again.
async fn stop_pods(context: &Context, identity: &Identity) -> Result<(), kube::Error> {
    let (client, namespace) = (context.client.clone(), &identity.namespace);
    for name in [build::producer_name(identity), build::consumer_name(identity)] {
        let autoscaler = context.stores.autoscalers.get(&identity.child(&name));
        if autoscaler.is_some_and(|autoscaler| is_ours(&autoscaler.metadata, &identity.uid)) {
            let api: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), namespace);
            unless_gone(api.delete(&name, &DeleteParams::background()).await.map(drop))?;
        }
        let Some(deployment) = context.stores.deployments.get(&identity.child(&name)) else { continue };
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
        if is_ours(&deployment.metadata, &identity.uid) && replicas != Some(0) {
            let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
            let patch = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
            let parameters = as_operator();
            unless_gone(api.patch(&name, &parameters, &patch).await.map(drop))?;
        }
    }
    Ok(())
}

/// Counts the remaining pods, including those that are ending.
async fn pods(context: &Context, identity: &Identity) -> Result<usize, kube::Error> {
    let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(context.client.clone(), &identity.namespace);
    let selector =
        format!("{}={},{}={}", build::MANAGED_BY_LABEL, build::MANAGED_BY, build::INSTANCE_LABEL, identity.name);
    let parameters = ListParams::default().labels(&selector);
    Ok(api.list(&parameters).await?.items.len())
}

/// Removes the data and returns what could not be removed. With `last` there is no other attempt.
async fn remove(context: &Context, flow: &OrderFlow, identity: Identity, last: bool) -> Result<Vec<Problem>, Halt> {
    let secrets =
        dereference::dereference(&context.client, &identity.namespace, &flow.spec).await.map_err(Error::Dereference)?;
    let adoption = Adoption::default();
    let pipeline =
        match validate::validate(identity, adoption, &flow.spec, &secrets, &context.images, &context.backends) {
            Ok(pipeline) => pipeline,
            Err(problem) => return Ok(vec![problem]),
        };
    // The tables last, because they and the status record the owner of everything else.
    let mut remaining = remove_topics(context, flow, &pipeline).await?;
    remaining.extend(remove_bucket(context, flow, &pipeline).await?);
    if last || remaining.iter().all(|problem| problem.class() != Class::Transient) {
        remaining.extend(remove_tables(context, flow, &pipeline).await?);
    } else {
        remaining.push(Problem::new(Reason::Unreachable, "tables: kept until everything else is removed"));
    }
    Ok(remaining)
}

async fn remove_topics(context: &Context, flow: &OrderFlow, pipeline: &Pipeline) -> Result<Vec<Problem>, Halt> {
    let access = match &pipeline.topic.access {
        Ok(access) => access,
        Err(problem) => return Ok(vec![problem.clone()]),
    };
    if let Err(problem) = context.backends.require_allowed_brokers(&pipeline.topic).await {
        return Ok(vec![problem]);
    }
    let (config, owner) = (access.settings.client(), pipeline.identity.owner());
    let group = async {
        let group = &pipeline.consumer.group;
        if !topics::belongs_to(group, &owner) {
            let reason = format!("its name does not begin with {}", owner.replacen('/', ".", 1));
            return Some(kept(format!("group {group}"), reason));
        }
        let names = &pipeline.topic.names;
        let removed = match topics::keeps_events(&config, names, &owner).await {
            Ok(true) => return Some(kept(format!("group {group}"), format!("the topic {} stays", names.orders))),
            Ok(false) => topics::remove_group(&config, group).await.map(drop),
            Err(error) => Err(error),
        };
        removed.err().map(|error| Problem::new(topic_reason(&error), format!("group {group}: {error}")))
    };
    let topics = async {
        match topics::remove(&config, &pipeline.topic.names, &owner).await {
            Ok(topics) => topics.into_iter().filter_map(topic_problem).collect(),
            Err(error) => vec![Problem::new(topic_reason(&error), format!("topics: {error}"))],
        }
    };
    // The group first: removing a topic removes the group's offsets, and a group without offsets could be mistaken for
    // another's.
    let mut remaining: Vec<Problem> = step(context, flow, group).await?.into_iter().collect();
    remaining.extend(step(context, flow, topics).await?);
    Ok(remaining)
}

fn topic_problem(topic: topics::Topic<topics::Removal>) -> Option<Problem> {
    let name = format!("topic {}", topic.name);
    match topic.outcome {
        Ok(topics::Removal::Removed | topics::Removal::Missing) => None,
        Ok(topics::Removal::Kept) => Some(kept(name, "no record shows that an OrderFlow created it")),
        Err(error) => Some(Problem::new(topic_reason(&error), error).in_part(name)),
    }
}

/// Reports something that is kept on purpose. The deletion does not wait for it, and the Warning names it.
fn kept(what: impl std::fmt::Display, reason: impl std::fmt::Display) -> Problem {
    Problem::new(Reason::Refused, format!("{what}: kept, because {reason}"))
}

async fn remove_bucket(context: &Context, flow: &OrderFlow, pipeline: &Pipeline) -> Result<Option<Problem>, Halt> {
    let settings = match bucket_settings(context, pipeline) {
        Ok(settings) => settings,
        Err(problem) => return Ok(Some(problem)),
    };
    if let Err(problem) = context.backends.require_allowed_endpoint(&pipeline.bucket).await {
        return Ok(Some(problem));
    }
    let client = s3::client(settings, context.s3.clone()).await;
    let name = &pipeline.bucket.name;
    // Many objects take several reconciles; each continues where the last one ended.
    let deadline = context.cleanup_deadline.min(Duration::from_secs(60));
    let owner = pipeline.identity.owner();
    match step(context, flow, bucket::remove(&client, name, &owner, deadline)).await? {
        Ok(removal) => {
            tracing::info!(bucket = name, %removal, "bucket");
            let kept = matches!(removal, bucket::Removal::NotEmpty { .. } | bucket::Removal::NotCreated { .. });
            Ok(kept.then(|| Problem::new(Reason::Refused, format!("bucket {name}: {removal}"))))
        }
        Err(error) => Ok(Some(Problem::new(bucket_reason(&error), format!("bucket {name}: {error}")))),
    }
}

async fn remove_tables(context: &Context, flow: &OrderFlow, pipeline: &Pipeline) -> Result<Vec<Problem>, Halt> {
    let owner = pipeline.identity.owner();
    let removals = pipeline.shards.iter().map(|shard| {
        let owner = &owner;
        async move {
            let options = match &shard.access {
                Ok(access) => &access.options,
                Err(problem) => return Ok(Some(problem.clone())),
            };
            if let Err(problem) = context.backends.require_allowed_database(shard, options).await {
                return Ok(Some(problem));
            }
            match step(context, flow, shard::remove(options, &claim(pipeline, shard, owner))).await? {
                Ok(removal) => {
                    tracing::info!(shard = shard.name, ?removal, "tables");
                    Ok(None)
                }
                Err(error) => {
                    Ok::<_, Halt>(Some(Problem::new(shard_reason(&error), format!("{}: {error}", shard.name))))
                }
            }
        }
    });
    Ok(try_join_all(removals).await?.into_iter().flatten().collect())
}

fn unless_gone(answer: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(error) if is_gone(&error) => Ok(()),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::build::fixture;

    fn flow(changes: &serde_json::Value) -> OrderFlow {
        OrderFlow::new("shop", fixture::spec(changes))
    }

    #[test]
    fn the_deadline_counts_from_the_deletion() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut flow = flow(&json!({}));
        let deadline = Duration::from_secs(300);
        assert!(!is_overdue(&flow, at(1_000_000), deadline));
        flow.metadata.deletion_timestamp = Some(Time(at(1000)));
        let overdue = |now| is_overdue(&flow, at(now), deadline);
        assert!(!overdue(1300) && overdue(1301));
        // The clocks of two machines differ.
        assert!(!overdue(990));
    }

    #[test]
    fn the_status_shows_whether_an_earlier_process_has_tried() {
        let with = |ready: &str, paused: &str| {
            let condition = |kind: &str, status: &str, reason: &str| {
                let time = "2026-01-01T00:00:00Z";
                json!({ "type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": time })
            };
            let conditions = [condition("Ready", "False", ready), condition("Paused", paused, "NotPaused")];
            serde_json::from_value(json!({ "conditions": conditions })).unwrap()
        };
        assert!(!was_tried(&OrderFlowStatus::default()));
        assert!(!was_tried(&with("Unreachable", "False")));
        assert!(!was_tried(&with("Deleting", "True")));
        assert!(was_tried(&with("Deleting", "False")));
    }

    #[test]
    fn retain_takes_precedence_over_a_pause() {
        let mut flow = flow(&json!({ "deletionPolicy": "Delete" }));
        assert!(halt(&flow).is_none());
        flow.annotations_mut().insert(PAUSED.to_owned(), "true".to_owned());
        assert!(matches!(halt(&flow), Some(Halt::Paused)));
        flow.spec.deletion_policy = DeletionPolicy::Retain;
        assert!(matches!(halt(&flow), Some(Halt::Retain)));
    }
}
