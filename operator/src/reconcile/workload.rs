//! Whether producers and consumers may be made or changed, and whether enough of them run.

use k8s_openapi::api::apps::v1::Deployment;

use super::{
    child,
    provision::Provisioned,
    validate::{Identity, Part, Pipeline},
};
use crate::{
    build,
    condition::{Class, Problem, Reason},
    context::Context,
};

/// What may be done to a Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// It is not made yet; one that is there goes on being kept.
    Waiting(Problem),
    /// What it would work on is another's, or the wrong one: what runs goes on with what it has.
    /// So do the other children of the same program: a network that is closed anew stops what runs, too.
    Held(Problem),
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

/// The producers need one shard, the consumers the topics; neither is let near what is another's.
pub fn gates(provisioned: &Provisioned) -> Gates {
    let another = |problem: &&Problem| problem.reason.is_about_ownership();
    let producer = match provisioned.problems().find(another) {
        Some(problem) => Gate::Held(problem.clone()),
        None if provisioned.shards.iter().any(Result::is_ok) => Gate::Open,
        None => Gate::Waiting(Problem::new(Reason::WaitingForShard, "no shard is ready yet")),
    };
    // Databases that were made for another topic: what is in that one has to be read first.
    let moved = |problem: &&Problem| problem.reason == Reason::MadeForAnother;
    let consumer = match (&provisioned.topic, provisioned.problems().find(moved)) {
        (Err(problem), _) if another(&problem) => Gate::Held(problem.clone()),
        (_, Some(problem)) => Gate::Held(problem.clone()),
        (Ok(_), None) => Gate::Open,
        (Err(_), None) => Gate::Waiting(Problem::new(Reason::WaitingForTopic, "the topics are not ready yet")),
    };
    Gates { producer, consumer }
}

/// When nothing can be built: what runs is left alone, and how it does is still said.
pub fn held(context: &Context, pipeline: &Pipeline, problem: &Problem) -> Workloads {
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
    context.live.deployments.get(&child(identity, name))
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
        let down = |part: &str| Problem::new(Reason::Unreachable, format!("{part}: down"));
        let other = || Problem::new(Reason::OwnedByAnother, "another's");
        let gates = |shards: [Part<i64>; 2], bucket: Part<Vec<String>>, topic: Part<Vec<String>>| {
            let gates = gates(&Provisioned { shards: shards.into(), bucket, topic, doubted: false });
            let name = |gate| match gate {
                Gate::Open => "open",
                Gate::Waiting(_) => "waiting",
                Gate::Held(_) => "held",
            };
            (name(gates.producer), name(gates.consumer))
        };
        let fine = || Ok(Vec::new());
        assert_eq!(gates([Ok(1), Ok(1)], fine(), fine()), ("open", "open"));
        assert_eq!(gates([Ok(1), Err(down("shard2"))], Err(down("bucket")), Err(down("topic"))), ("open", "waiting"));
        assert_eq!(gates([Err(down("shard1")), Err(down("shard2"))], fine(), fine()), ("waiting", "open"));
        assert_eq!(gates([Ok(1), Err(other())], fine(), fine()), ("held", "open"));
        assert_eq!(gates([Ok(1), Ok(1)], fine(), Err(other())), ("held", "held"));
        assert_eq!(gates([Ok(1), Ok(1)], Err(other()), fine()), ("held", "open"));
        // A wrong password is one shard's trouble.
        let refused = || Err(Problem::new(Reason::Refused, "password authentication failed"));
        assert_eq!(gates([Ok(1), refused()], fine(), fine()), ("open", "open"));
        let moved = || Err(Problem::new(Reason::MadeForAnother, "made for topic a"));
        assert_eq!(gates([moved(), moved()], fine(), fine()), ("held", "held"));
    }
}
