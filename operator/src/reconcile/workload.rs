//! Whether producers and consumers may be made or changed, and whether enough of them run.

use k8s_openapi::api::apps::v1::Deployment;

use super::{context::Context, provisioned::Provisioned};
use crate::{
    build,
    condition::{Class, Problem, Reason},
    pipeline::{Identity, Part, Pipeline},
};

/// What may be done to a Deployment and to what belongs to it. Why not, otherwise; what runs then goes on with what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// If it is not there.
    pub make: Part<()>,
    /// If it is.
    pub change: Part<()>,
}

/// Of both Deployments.
pub struct Gates {
    pub producer: Gate,
    pub consumer: Gate,
}

/// How it stands with the Deployments.
pub struct Workloads {
    pub producer: Part<Availability>,
    pub consumer: Part<Availability>,
}

/// Enough pods are there, or will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    pub available: bool,
    pub reason: Reason,
    pub message: String,
}

/// The producers need one shard, the consumers the topics, and neither is let near what is another's. Pods that work are not
/// replaced by such as a database or a broker has already refused; what only does not answer holds up nothing.
pub fn gates(provisioned: &Provisioned) -> Gates {
    let another = |problem: &&Problem| problem.reason.is_about_ownership();
    let refused = |problem: &&Problem| problem.class() == Class::NeedsUser;
    let closed = |problem: &Problem| Gate { make: Err(problem.clone()), change: Err(problem.clone()) };
    let open = |problem: Option<&Problem>| problem.map_or(Ok(()), |problem| Err(problem.clone()));

    let mut shards = provisioned.shards.iter().filter_map(|shard| shard.as_ref().err());
    let producer = match provisioned.problems().find(another) {
        Some(problem) => closed(problem),
        None => {
            let waiting = Problem::new(Reason::WaitingForShard, "no shard is ready yet");
            let ready = provisioned.shards.iter().any(Result::is_ok);
            // Both programs log in to the brokers alike; what a bucket refuses is also up to whose role asks.
            let by_brokers = provisioned.topic.as_ref().err().filter(|problem| problem.reason == Reason::Refused);
            Gate { make: open((!ready).then_some(&waiting)), change: open(shards.find(refused).or(by_brokers)) }
        }
    };
    // Databases that were made for another topic: what is in that one has to be read first.
    let moved = provisioned.problems().find(|problem| problem.reason == Reason::MadeForAnother);
    let topic = provisioned.topic.as_ref().err();
    let consumer = match topic.filter(another).or(moved) {
        Some(problem) => closed(problem),
        None => {
            let waiting = Problem::new(Reason::WaitingForTopic, "the topics are not ready yet");
            Gate { make: open(topic.map(|_| &waiting)), change: open(topic.filter(refused)) }
        }
    };
    Gates { producer, consumer }
}

/// When nothing can be built: what runs is left alone, and how it does is still said.
pub fn blocked(context: &Context, pipeline: &Pipeline, problem: &Problem) -> Workloads {
    let of = |name: String| {
        live(context, &pipeline.identity, &name).map_or_else(|| Err(not_made(problem)), |live| availability(&live))
    };
    Workloads {
        producer: of(build::producer_name(&pipeline.identity)),
        consumer: of(build::consumer_name(&pipeline.identity)),
    }
}

/// The problem is another condition's, and told of once.
pub fn not_made(problem: &Problem) -> Problem {
    let reason = if problem.class() == Class::Fine { problem.reason } else { Reason::NotChecked };
    Problem::new(reason, format!("not made yet: {}", problem.message))
}

pub fn live(context: &Context, identity: &Identity, name: &str) -> Option<std::sync::Arc<Deployment>> {
    context.stores.deployments.get(&identity.child(name))
}

/// As its own controller sees it.
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
            message: "the change is not acted on yet".to_owned(),
        });
    }
    if let Some(stalled) =
        condition("Progressing").filter(|condition| condition.reason.as_deref() == Some("ProgressDeadlineExceeded"))
    {
        let why = stalled.message.clone().unwrap_or_default();
        return Err(Problem::new(Reason::Stalled, format!("{message}: {why}")));
    }
    // A quota or an admission refuses the pods.
    if let Some(failure) = condition("ReplicaFailure").filter(|condition| condition.status == "True") {
        let why = failure.message.clone().unwrap_or_default();
        return Err(Problem::new(Reason::Stalled, format!("{message}: {why}")));
    }
    let reason = match (available >= wanted, updated >= wanted && status.replicas.unwrap_or(0) <= wanted) {
        _ if wanted == 0 => Reason::ScaledToZero,
        (true, true) => Reason::Available,
        _ => Reason::Progressing,
    };
    // While one version replaces another, the pods that there should be are there.
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
    fn a_deployment_is_available_as_its_controller_sees_it() {
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
    fn the_gates_open_with_a_shard_and_with_the_topics() {
        let (fine, ready) = (|| Ok(Vec::new()), || Ok(1));
        let down = || Problem::new(Reason::Unreachable, "down");
        let other = || Problem::new(Reason::OwnedByAnother, "another's");
        let refused = || Problem::new(Reason::Refused, "password authentication failed");
        let moved = || Problem::new(Reason::MadeForAnother, "made for topic a");
        // Shards, bucket, topic; whether producers, then consumers, may be made and changed.
        type Row = ([Part<i64>; 2], Part<Vec<String>>, Part<Vec<String>>, [bool; 2], [bool; 2]);
        let table: [Row; 10] = [
            ([ready(), ready()], fine(), fine(), [true, true], [true, true]),
            ([ready(), Err(down())], Err(down()), Err(down()), [true, true], [false, true]),
            ([Err(down()), Err(down())], fine(), fine(), [false, true], [true, true]),
            ([ready(), Err(other())], fine(), fine(), [false, false], [true, true]),
            ([ready(), ready()], fine(), Err(other()), [false, false], [false, false]),
            ([ready(), ready()], Err(other()), fine(), [false, false], [true, true]),
            // A wrong password is one shard's trouble, and no reason to replace pods that have a right one.
            ([ready(), Err(refused())], fine(), fine(), [true, false], [true, true]),
            // No order waits for S3 or Kafka: producers are made. Their relays would wait for the right password, though.
            ([ready(), ready()], Err(refused()), fine(), [true, true], [true, true]),
            ([ready(), ready()], fine(), Err(refused()), [true, false], [false, false]),
            ([Err(moved()), Err(moved())], fine(), fine(), [false, false], [false, false]),
        ];
        for (row, (shards, bucket, topic, producer, consumer)) in table.into_iter().enumerate() {
            let shards = shards.into();
            let gates = gates(&Provisioned { shards, bucket, topic, notes: Notes::default(), suppressed: false });
            let allowed = |gate: &Gate| [gate.make.is_ok(), gate.change.is_ok()];
            assert_eq!((allowed(&gates.producer), allowed(&gates.consumer)), (producer, consumer), "row {row}");
        }
    }
}
