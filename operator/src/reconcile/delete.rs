//! What becomes of a resource that is being deleted. With `Retain` nothing: the API server's garbage collection removes the
//! children. With `Delete` the pods are stopped, then what they wrote is removed: topics and group, receipts and bucket, and
//! last the tables, which say whose all of it was. What cannot be removed in time is named in a Warning, and the resource
//! let go: nobody should have to edit a finalizer because a server is gone.

use std::time::{Duration, Instant};

use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch},
    core::PartialObjectMeta,
};
use orderflow_provision::{bucket, shard, topics};
use orderflow_service::s3;
use serde_json::json;

use super::{
    Again, Error,
    apply::is_ours,
    child, dereference,
    event::{self, Severity},
    finalizer,
    provision::{bucket_reason, bucket_settings, claim, shard_reason, topic_reason},
    status::{self, Report},
    validate::{self, Identity, Pipeline},
};
use crate::{
    build,
    condition::{Class, Problem, Reason},
    context::{Context, as_operator, is_gone},
    crd::{ADOPT, OrderFlow},
    memory::Memory,
};

/// Pods end within their grace; this often it is looked whether they have.
const PODS: Duration = Duration::from_secs(2);

pub async fn delete(
    context: &Context,
    flow: &OrderFlow,
    identity: Identity,
    memory: &mut Memory,
) -> Result<Again, Error> {
    if !finalizer::has(flow) {
        context.metrics.gone(&identity.namespace, &identity.name);
        return Ok(Again::Never);
    }
    // From the first look: whoever was away for long has not tried for long.
    let began = *memory.deleting_since.get_or_insert_with(Instant::now);
    let overdue = began.elapsed() > context.cleanup_deadline;

    stop_pods(context, &identity).await.map_err(Error::Delete)?;
    let pods = pods(context, &identity).await.map_err(Error::Delete)?;
    if pods > 0 && !overdue {
        let report = Report::Deleting(format!("{pods} pods are still there"));
        status::write(context, flow, memory, &report).await?;
        return Ok(Again::In(PODS));
    }

    let mut left = remove(context, flow, identity, overdue).await?;
    if overdue && pods > 0 {
        left.push(Problem::new(Reason::Unreachable, format!("{pods} pods were still there")));
    }
    let message = left.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ");
    if left.iter().any(|problem| problem.class() == Class::Transient) && !overdue {
        let report = Report::Deleting(format!("not removed yet: {message}"));
        status::write(context, flow, memory, &report).await?;
        return Ok(Again::Backoff);
    }
    if left.is_empty() {
        tracing::info!("everything of the resource was removed");
    } else {
        event::tell(
            context,
            flow,
            Severity::Warning,
            "CleanupIncomplete",
            "Delete",
            &format!("left behind: {message}"),
        )
        .await;
    }
    match finalizer::set(&context.client, flow, false).await {
        Err(error) if !is_gone(&error) => Err(Error::Finalizer(error)),
        _ => Ok(Again::Never),
    }
}

/// The autoscaler goes first; it would start them again.
async fn stop_pods(context: &Context, identity: &Identity) -> Result<(), kube::Error> {
    let (client, namespace) = (context.client.clone(), &identity.namespace);
    for name in [build::producer_name(identity), build::consumer_name(identity)] {
        let autoscaler = context.live.autoscalers.get(&child(identity, &name));
        if autoscaler.is_some_and(|autoscaler| is_ours(&autoscaler.metadata, &identity.uid)) {
            let api: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), namespace);
            unless_gone(api.delete(&name, &DeleteParams::background()).await.map(drop))?;
        }
        let Some(deployment) = context.live.deployments.get(&child(identity, &name)) else { continue };
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

/// How many are left, those that are ending included.
async fn pods(context: &Context, identity: &Identity) -> Result<usize, kube::Error> {
    let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(context.client.clone(), &identity.namespace);
    let selector =
        format!("{}={},{}={}", build::MANAGED_BY_LABEL, build::MANAGED_BY, build::INSTANCE_LABEL, identity.name);
    let parameters = ListParams::default().labels(&selector);
    Ok(api.list(&parameters).await?.items.len())
}

/// What could not be removed. `last`: there will be no other try.
async fn remove(context: &Context, flow: &OrderFlow, identity: Identity, last: bool) -> Result<Vec<Problem>, Error> {
    let secrets =
        dereference::dereference(&context.client, &identity.namespace, &flow.spec).await.map_err(Error::Dereference)?;
    let adopt = super::is_set(flow, ADOPT);
    let pipeline = match validate::validate(identity, adopt, &flow.spec, &secrets, &context.images) {
        Ok(pipeline) => pipeline,
        Err(problem) => return Ok(vec![problem]),
    };
    // The tables last: until then they, and the status, say whose the rest is.
    let mut left = remove_topics(&pipeline).await;
    left.extend(remove_bucket(context, &pipeline).await);
    if last || left.iter().all(|problem| problem.class() != Class::Transient) {
        left.extend(remove_tables(&pipeline).await);
    } else {
        left.push(Problem::new(Reason::Unreachable, "the tables wait for the rest"));
    }
    Ok(left)
}

async fn remove_topics(pipeline: &Pipeline) -> Vec<Problem> {
    let access = match &pipeline.topic.access {
        Ok(access) => access,
        Err(problem) => return vec![problem.clone()],
    };
    let (config, owner) = (access.settings.client(), pipeline.identity.owner());
    let group = async {
        let group = &pipeline.consumer.group;
        if !topics::belongs_to(group, &owner) {
            let why = format!("its name does not begin with {}", owner.replacen('/', ".", 1));
            return Some(kept(format!("group {group}"), why));
        }
        let removed = topics::remove_group(&config, group).await;
        removed.err().map(|error| Problem::new(topic_reason(&error), format!("group {group}: {error}")))
    };
    let topics = async {
        match topics::remove(&config, &pipeline.topic.names, &owner).await {
            Ok(topics) => topics.into_iter().filter_map(of_topic).collect(),
            Err(error) => vec![Problem::new(topic_reason(&error), format!("topics: {error}"))],
        }
    };
    // The group first: a topic that is gone takes the group's offsets along, and the group could then look like another's.
    let mut left: Vec<Problem> = group.await.into_iter().collect();
    left.extend(topics.await);
    left
}

fn of_topic(topic: topics::Topic<topics::Removal>) -> Option<Problem> {
    let name = format!("topic {}", topic.name);
    match topic.outcome {
        Ok(topics::Removal::Removed | topics::Removal::Missing) => None,
        Ok(topics::Removal::Kept) => Some(kept(name, "nothing says that an OrderFlow created it")),
        Err(error) => Some(Problem::new(topic_reason(&error), error).of(name)),
    }
}

/// What is left on purpose: nobody waits for it, and the Warning names it.
fn kept(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Problem {
    Problem::new(Reason::Refused, format!("{what}: kept, as {why}"))
}

async fn remove_bucket(context: &Context, pipeline: &Pipeline) -> Option<Problem> {
    let settings = match bucket_settings(context, pipeline) {
        Ok(settings) => settings,
        Err(problem) => return Some(problem),
    };
    let client = s3::client(settings, context.s3.clone()).await;
    let name = &pipeline.bucket.name;
    // Many objects take several looks; each goes on where the last one ended.
    let deadline = context.cleanup_deadline.min(Duration::from_secs(60));
    match bucket::remove(&client, name, &pipeline.identity.owner(), deadline).await {
        Ok(removal) => {
            tracing::info!(bucket = name, %removal, "bucket");
            let kept = matches!(removal, bucket::Removal::NotEmpty { .. } | bucket::Removal::NotCreated { .. });
            kept.then(|| Problem::new(Reason::Refused, format!("bucket {name}: {removal}")))
        }
        Err(error) => Some(Problem::new(bucket_reason(&error), format!("bucket {name}: {error}"))),
    }
}

async fn remove_tables(pipeline: &Pipeline) -> Vec<Problem> {
    let owner = pipeline.identity.owner();
    let removals = pipeline.shards.iter().map(|shard| {
        let owner = &owner;
        async move {
            let options = match &shard.access {
                Ok(access) => &access.options,
                Err(problem) => return Some(problem.clone()),
            };
            match shard::remove(options, &claim(pipeline, shard, owner)).await {
                Ok(removal) => {
                    tracing::info!(shard = shard.name, ?removal, "tables");
                    None
                }
                Err(error) => Some(Problem::new(shard_reason(&error), format!("{}: {error}", shard.name))),
            }
        }
    });
    futures_util::future::join_all(removals).await.into_iter().flatten().collect()
}

fn unless_gone(answer: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match answer {
        Err(error) if is_gone(&error) => Ok(()),
        answer => answer,
    }
}
