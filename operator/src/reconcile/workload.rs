//! Decides whether producers and consumers may be created or updated, and whether enough of them run.

use k8s_openapi::api::apps::v1::Deployment;

use super::{context::Context, provisioned::Provisioned};
use crate::{
    build,
    condition::{Class, Problem, Reason},
    pipeline::{Identity, Part, Pipeline},
};

/// The permission to create or update a Deployment and what belongs to it, or the reason against it. Running pods are
/// left alone then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The permission if it does not exist.
    pub create: Part<()>,
    /// The permission if it exists.
    pub update: Part<()>,
}

/// The gates of both Deployments.
pub struct Gates {
    pub producer: Gate,
    pub consumer: Gate,
}

/// The availability of both Deployments.
pub struct Workloads {
    pub producer: Part<Availability>,
    pub consumer: Part<Availability>,
}

/// The availability of a Deployment's pods, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    pub available: bool,
    pub reason: Reason,
    pub message: String,
}

/// Decides both gates. Producers need one shard, consumers need the topics, and neither may use a backend of another
/// owner. Running pods are not replaced by pods that a database or a broker has already refused. A backend that only
/// does not answer blocks no update.
pub fn gates(provisioned: &Provisioned) -> Gates {
    let another = |problem: &&Problem| problem.reason.is_about_ownership();
    let refused = |problem: &&Problem| problem.class() == Class::NeedsUser;
    let closed = |problem: &Problem| Gate { create: Err(problem.clone()), update: Err(problem.clone()) };
    let open = |problem: Option<&Problem>| problem.map_or(Ok(()), |problem| Err(problem.clone()));

    let mut shards = provisioned.shards.iter().filter_map(|shard| shard.as_ref().err());
    let producer = match provisioned.problems().find(another) {
        Some(problem) => closed(problem),
        None => {
            let waiting = Problem::new(Reason::WaitingForShard, "no shard is ready yet");
            let ready = provisioned.shards.iter().any(Result::is_ok);
            // Both programs use the same credentials for the brokers. A bucket may refuse the operator's role and
            // accept the pods'.
            let by_brokers = provisioned.topic.as_ref().err().filter(|problem| problem.reason == Reason::Refused);
            Gate { create: open((!ready).then_some(&waiting)), update: open(shards.find(refused).or(by_brokers)) }
        }
    };
    // If the databases were set up for another topic, the consumers must first read its events.
    let moved = provisioned.problems().find(|problem| problem.reason == Reason::MadeForAnother);
    let topic = provisioned.topic.as_ref().err();
    let consumer = match topic.filter(another).or(moved) {
        Some(problem) => closed(problem),
        None => {
            let waiting = Problem::new(Reason::WaitingForTopic, "the topics are not ready yet");
            Gate { create: open(topic.map(|_| &waiting)), update: open(topic.filter(refused)) }
        }
    };
    Gates { producer, consumer }
}

/// Reports the availability when the children cannot be built and running pods are left alone.
pub fn blocked(context: &Context, pipeline: &Pipeline, problem: &Problem) -> Workloads {
    let workload = |name: String| {
        live(context, &pipeline.identity, &name).map_or_else(|| Err(not_created(problem)), |live| availability(&live))
    };
    Workloads {
        producer: workload(build::producer_name(&pipeline.identity)),
        consumer: workload(build::consumer_name(&pipeline.identity)),
    }
}

/// Turns another condition's problem into the reason why pods are not created, so that the problem is counted once.
pub fn not_created(problem: &Problem) -> Problem {
    let reason = if problem.class() == Class::Fine { problem.reason } else { Reason::NotChecked };
    Problem::new(reason, format!("not created yet: {}", problem.message))
}

pub fn live(context: &Context, identity: &Identity, name: &str) -> Option<std::sync::Arc<Deployment>> {
    context.stores.deployments.get(&identity.child(name))
}

/// Returns the availability according to the Deployment's controller.
pub fn availability(deployment: &Deployment) -> Part<Availability> {
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let (available, updated) = (status.available_replicas.unwrap_or(0), status.updated_replicas.unwrap_or(0));
    let message = format!("{available} of {wanted} pods are available");
    let condition = |kind: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    if status.observed_generation < deployment.metadata.generation {
        return Ok(Availability {
            available: false,
            reason: Reason::Progressing,
            message: "the Deployment's controller has not observed the change yet".to_owned(),
        });
    }
    if let Some(stalled) =
        condition("Progressing").filter(|condition| condition.reason.as_deref() == Some("ProgressDeadlineExceeded"))
    {
        let reason = stalled.message.clone().unwrap_or_default();
        return Err(Problem::new(Reason::Stalled, format!("{message}: {reason}")));
    }
    // A quota or an admission plugin refuses the pods.
    if let Some(failure) = condition("ReplicaFailure").filter(|condition| condition.status == "True") {
        let reason = failure.message.clone().unwrap_or_default();
        return Err(Problem::new(Reason::Stalled, format!("{message}: {reason}")));
    }
    let reason = match (available >= wanted, updated >= wanted && status.replicas.unwrap_or(0) <= wanted) {
        _ if wanted == 0 => Reason::ScaledToZero,
        (true, true) => Reason::Available,
        _ => Reason::Progressing,
    };
    // During an update enough pods are available.
    Ok(Availability { available: available >= wanted, reason, message })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reconcile::provisioned::Notes;

    fn deployment(status: &serde_json::Value, replicas: i32) -> Deployment {
        let spec = json!({"replicas": replicas, "selector": {}, "template": {}});
        serde_json::from_value(json!({"metadata": {"generation": 3}, "spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn availability_follows_the_status_of_the_deployment() {
        let status = |observed: i64, replicas: i32, updated: i32, available: i32| json!({"observedGeneration": observed, "replicas": replicas, "updatedReplicas": updated, "availableReplicas": available});
        for (name, status, replicas, available, reason) in [
            ("not acted on", status(2, 2, 2, 2), 2, false, Reason::Progressing),
            ("starting", status(3, 2, 2, 1), 2, false, Reason::Progressing),
            ("there", status(3, 2, 2, 2), 2, true, Reason::Available),
            ("being replaced", status(3, 3, 1, 2), 2, true, Reason::Progressing),
            ("none wanted", status(3, 0, 0, 0), 0, true, Reason::ScaledToZero),
        ] {
            let found = availability(&deployment(&status, replicas)).unwrap();
            assert_eq!((found.available, found.reason), (available, reason), "{name}");
        }
        let stalled = json!({"observedGeneration": 3, "conditions": [
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "no progress"}
        ]});
        let problem = availability(&deployment(&stalled, 2)).unwrap_err();
        assert_eq!(
            (problem.reason, problem.message.as_str()),
            (Reason::Stalled, "0 of 2 pods are available: no progress")
        );
    }

    #[test]
    fn producers_need_a_shard_and_consumers_the_topics() {
        let (fine, ready) = (|| Ok(Vec::new()), || Ok(1));
        let down = || Problem::new(Reason::Unreachable, "down");
        let other = || Problem::new(Reason::OwnedByAnother, "belongs to another");
        let refused = || Problem::new(Reason::Refused, "password authentication failed");
        let moved = || Problem::new(Reason::MadeForAnother, "set up for topic a");
        // Shards, bucket, topic; then whether producers and consumers may be created and updated.
        type Row = ([Part<i64>; 2], Part<Vec<String>>, Part<Vec<String>>, [bool; 2], [bool; 2]);
        let table: [Row; 10] = [
            ([ready(), ready()], fine(), fine(), [true, true], [true, true]),
            ([ready(), Err(down())], Err(down()), Err(down()), [true, true], [false, true]),
            ([Err(down()), Err(down())], fine(), fine(), [false, true], [true, true]),
            ([ready(), Err(other())], fine(), fine(), [false, false], [true, true]),
            ([ready(), ready()], fine(), Err(other()), [false, false], [false, false]),
            ([ready(), ready()], Err(other()), fine(), [false, false], [true, true]),
            // A wrong password affects one shard only, and is no reason to replace pods that have the right one.
            ([ready(), Err(refused())], fine(), fine(), [true, false], [true, true]),
            // Producers can be created because orders need neither S3 nor Kafka. Their relays would wait for the right
            // password, though.
            ([ready(), ready()], Err(refused()), fine(), [true, true], [true, true]),
            ([ready(), ready()], fine(), Err(refused()), [true, false], [false, false]),
            ([Err(moved()), Err(moved())], fine(), fine(), [false, false], [false, false]),
        ];
        for (row, (shards, bucket, topic, producer, consumer)) in table.into_iter().enumerate() {
            let shards = shards.into();
            let gates = gates(&Provisioned { shards, bucket, topic, notes: Notes::default(), suppressed: false });
            let allowed = |gate: &Gate| [gate.create.is_ok(), gate.update.is_ok()];
            assert_eq!((allowed(&gates.producer), allowed(&gates.consumer)), (producer, consumer), "row {row}");
        }
    }
}
