//! Writes the status. It is computed after every reconcile and written if it differs; each new problem causes one
//! Event.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::Patch};
use serde_json::{Value, json};

use super::{
    claims,
    context::Context,
    event::{self, cut},
    outcome::{Error, Requeue, requeue},
    provisioned::Provisioned,
    resource_state::{ResourceState, Version, Written},
    workload::{Availability, Workloads},
};
use crate::{
    build,
    condition::{Class, Kind, Problem, Reason},
    crd::{OrderFlow, OrderFlowStatus, ShardStatus},
    kubernetes::as_operator,
    pipeline::{Part, Pipeline},
};

/// The limit of a message, in bytes. Longer answers of servers are in the log.
const LONGEST_MESSAGE: usize = 4096;

/// The result of a reconcile.
pub enum Report<'a> {
    Reconciled {
        pipeline: &'a Pipeline,
        provisioned: &'a Provisioned,
        workloads: Workloads,
    },
    /// The spec as a whole is invalid.
    Invalid(Problem),
    Paused,
    /// The resource is being deleted, and the text names what remains to be removed.
    Deleting(String),
    /// The deletion is paused.
    DeletionPaused,
    /// The reconcile panicked.
    Panicked(Problem),
}

/// A condition before it becomes part of a status.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// The status of the condition; `None` is `Unknown`.
    holds: Option<bool>,
    reason: Reason,
    message: String,
}

/// Writes the status if it differs, emits Events for new problems, and returns the time of the next reconcile.
pub async fn write(
    context: &Context,
    flow: &OrderFlow,
    state: &mut ResourceState,
    report: &Report<'_>,
) -> Result<Requeue, Error> {
    let before = last_known(flow, state);
    let after = status(flow, &before, report, Timestamp::now());
    if after != before {
        let api: Api<OrderFlow> = Api::namespaced(context.client.clone(), &flow.namespace().unwrap_or_default());
        let parameters = as_operator();
        let patch = Patch::Merge(json!({ "status": difference(&before, &after) }));
        let written = api.patch_status(&flow.name_any(), &parameters, &patch).await.map_err(Error::Status)?;
        state.status = Some(Written { version: Version::from_meta(&written.metadata), status: after.clone() });
        event::emit_changes(context, flow, &before, &after).await;
    }
    let ready = after.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    context.metrics.ready(&flow.namespace().unwrap_or_default(), &flow.name_any(), ready);
    let problems = problems(report);
    for problem in &problems {
        context.metrics.problem(problem.reason);
    }
    Ok(requeue(problems.iter().map(|problem| problem.class())))
}

/// Returns the newer of the status in the watch and the one that we wrote last.
pub fn last_known(flow: &OrderFlow, state: &ResourceState) -> OrderFlowStatus {
    match &state.status {
        // The watch has not yet reported our last write.
        Some(written) if written.version > Version::from_meta(&flow.metadata) => written.status.clone(),
        _ => flow.status.clone().unwrap_or_default(),
    }
}

fn problems<'a>(report: &'a Report<'_>) -> Vec<&'a Problem> {
    match report {
        Report::Reconciled { provisioned, workloads, .. } => provisioned
            .problems()
            .chain(workloads.producer.as_ref().err())
            .chain(workloads.consumer.as_ref().err())
            .filter(|problem| problem.class() != Class::Fine)
            .collect(),
        Report::Invalid(problem) | Report::Panicked(problem) => vec![problem],
        Report::Paused | Report::Deleting(_) | Report::DeletionPaused => Vec::new(),
    }
}

/// Builds a merge patch. A field that is no longer set must be null in it, because a patch keeps what it omits.
fn difference(before: &OrderFlowStatus, after: &OrderFlowStatus) -> Value {
    let json = |status: &OrderFlowStatus| serde_json::to_value(status).unwrap_or_default();
    let (before, mut after) = (json(before), json(after));
    if let (Some(before), Some(after)) = (before.as_object(), after.as_object_mut()) {
        for key in before.keys().filter(|key| !after.contains_key(*key)).cloned().collect::<Vec<_>>() {
            after.insert(key, Value::Null);
        }
    }
    after
}

/// Computes the whole status. Pure, so that unchanged inputs give an unchanged status.
fn status(flow: &OrderFlow, before: &OrderFlowStatus, report: &Report<'_>, now: Timestamp) -> OrderFlowStatus {
    let generation = flow.metadata.generation;
    let conditions = Kind::ALL
        .iter()
        .map(|kind| {
            let old = before.conditions.iter().find(|condition| condition.type_ == kind.as_str());
            match (finding(*kind, report), old) {
                (Some(finding), old) => condition(*kind, finding, old, generation, now),
                // Not checked: it keeps its value and its time.
                (None, Some(old)) => old.clone(),
                (None, None) => condition(*kind, Finding::unknown("not checked yet"), None, generation, now),
            }
        })
        .collect();
    let observed_generation = match report {
        // A client that waits for a new spec must not take the old Ready for its result.
        Report::Paused => before.observed_generation.or(generation),
        _ => generation,
    };
    let mut status = OrderFlowStatus { observed_generation, conditions, ..before.clone() };
    if let Report::Reconciled { pipeline, provisioned, .. } = report {
        let ready = provisioned.shards.iter().filter(|shard| shard.is_ok()).count();
        status.shards_ready = Some(format!("{ready}/{}", pipeline.shards.len()));
        status.shards = std::iter::zip(&pipeline.shards, &provisioned.shards)
            .map(|(shard, part)| ShardStatus {
                name: shard.name.clone(),
                ready: part.is_ok(),
                schema: part.as_ref().ok().copied(),
                reason: part.as_ref().err().map(|problem| problem.reason.as_str().to_owned()),
            })
            .collect();
        let moved = provisioned.problems().any(|problem| problem.reason == Reason::MadeForAnother);
        status.topic = match &provisioned.topic {
            // The topics of the new name exist, but the databases still belong to the old topic.
            Ok(_) if moved => before.topic.clone(),
            Ok(_) => Some(claims::key(&pipeline.topic)),
            // They belong to another owner now. A Kafka that is only down changes no owner.
            Err(problem) if problem.reason == Reason::OwnedByAnother => None,
            Err(_) => before.topic.clone(),
        };
        status.kafka_cluster_id = match (&status.topic, &provisioned.topic) {
            (None, _) => None,
            (Some(_), Ok(_)) if !moved => provisioned.notes.kafka_cluster_id.clone(),
            (Some(_), _) => before.kafka_cluster_id.clone(),
        };
        let identity = &pipeline.identity;
        let url = |service: String, port: u16| Some(format!("http://{service}.{}.svc:{port}", identity.namespace));
        status.url = url(build::producer_name(identity), build::HTTP_PORT);
        status.internal_url = url(build::internal_name(identity), build::INTERNAL_PORT);
    }
    status
}

/// Computes a condition, or `None` if it keeps its last value.
fn finding(kind: Kind, report: &Report<'_>) -> Option<Finding> {
    let paused = match report {
        Report::Paused | Report::DeletionPaused => {
            Finding::new(true, Reason::PauseRequested, "the annotation orderflow.dev/paused is true")
        }
        _ => Finding::new(false, Reason::NotPaused, "no pause is requested"),
    };
    match (kind, report) {
        (Kind::Paused, _) => Some(paused),
        (Kind::Ready, Report::Invalid(problem) | Report::Panicked(problem)) => Some(Finding::from_problem(problem)),
        (_, Report::Invalid(_)) => Some(Finding::unknown("the spec is invalid")),
        (Kind::Ready, Report::Deleting(message)) => Some(Finding::new(false, Reason::Deleting, message.clone())),
        (Kind::Ready, Report::DeletionPaused) => Some(Finding::new(
            false,
            Reason::Deleting,
            "nothing is removed during the pause: remove the annotation orderflow.dev/paused to continue the deletion, \
             or set deletionPolicy to Retain to end it",
        )),
        (_, Report::Paused | Report::Deleting(_) | Report::DeletionPaused | Report::Panicked(_)) => None,
        (Kind::ShardsReady, Report::Reconciled { provisioned, .. }) => {
            Some(shards(&provisioned.shards, &provisioned.notes.shards))
        }
        (Kind::BucketReady, Report::Reconciled { provisioned, .. }) => {
            Some(Finding::from_part(&provisioned.bucket, |notes| {
                Finding::new(
                    true,
                    Reason::Provisioned,
                    with_notes("the bucket exists and belongs to this resource", notes),
                )
            }))
        }
        (Kind::TopicReady, Report::Reconciled { provisioned, .. }) => {
            Some(Finding::from_part(&provisioned.topic, |differences| match differences.as_slice() {
                [] => {
                    Finding::new(true, Reason::Provisioned, with_notes("the topics exist", &provisioned.notes.brokers))
                }
                differences => {
                    let text = with_notes(&differences.join("; "), &provisioned.notes.brokers);
                    Finding::new(true, Reason::TopicsDiffer, text)
                }
            }))
        }
        (Kind::ProducerAvailable, Report::Reconciled { workloads, .. }) => {
            Some(Finding::from_part(&workloads.producer, Finding::from_availability))
        }
        (Kind::ConsumerAvailable, Report::Reconciled { workloads, .. }) => {
            Some(Finding::from_part(&workloads.consumer, Finding::from_availability))
        }
        (Kind::Ready, Report::Reconciled { .. }) => Some(ready(report)),
    }
}

fn with_notes(text: &str, notes: &[String]) -> String {
    if notes.is_empty() { text.to_owned() } else { format!("{text} ({})", notes.join("; ")) }
}

fn shards(shards: &[Part<i64>], notes: &[String]) -> Finding {
    let problems: Vec<&Problem> = shards.iter().filter_map(|shard| shard.as_ref().err()).collect();
    let ready = format!("{} of {} shards are ready", shards.len() - problems.len(), shards.len());
    match problems.first() {
        None => Finding::new(true, Reason::Provisioned, with_notes(&ready, notes)),
        Some(first) => {
            let messages: Vec<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
            Finding::new(false, first.reason, format!("{ready}: {}", messages.join("; ")))
        }
    }
}

/// Computes Ready. The first other condition that does not hold gives the reason, and the message names all of them. A
/// condition that only waits for another one comes last.
fn ready(report: &Report<'_>) -> Finding {
    let parts: Vec<(Kind, Finding)> = Kind::ALL
        .iter()
        .filter(|kind| !matches!(kind, Kind::Ready | Kind::Paused))
        .filter_map(|kind| Some((*kind, finding(*kind, report)?)))
        .filter(|(_, finding)| finding.holds != Some(true))
        .collect();
    let first = parts.iter().min_by_key(|(_, finding)| finding.reason.class() == Class::Fine);
    match first {
        None => {
            let ready = "all parts work";
            let unheeded = match report {
                Report::Reconciled { pipeline, .. } => pipeline.adoption.outdated(),
                _ => None,
            };
            let message = unheeded.map_or_else(|| ready.to_owned(), |unheeded| format!("{ready}; {unheeded}"));
            Finding::new(true, Reason::Available, message)
        }
        Some((_, first)) => {
            let messages: Vec<String> =
                parts.iter().map(|(kind, finding)| format!("{kind}: {}", finding.message)).collect();
            Finding::new(false, first.reason, messages.join("; "))
        }
    }
}

fn condition(
    kind: Kind,
    finding: Finding,
    old: Option<&Condition>,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let status = match finding.holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let since = old.filter(|old| old.status == status).map(|old| old.last_transition_time.clone());
    Condition {
        type_: kind.as_str().to_owned(),
        status: status.to_owned(),
        reason: finding.reason.as_str().to_owned(),
        message: cut(finding.message, LONGEST_MESSAGE),
        observed_generation: generation,
        // In whole seconds, as the API server stores it: a finer time would differ from the stored one.
        last_transition_time: since.unwrap_or_else(|| Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
    }
}

impl Finding {
    fn new(holds: bool, reason: Reason, message: impl Into<String>) -> Self {
        Self { holds: Some(holds), reason, message: message.into() }
    }

    fn unknown(message: &str) -> Self {
        Self { holds: None, reason: Reason::NotChecked, message: message.to_owned() }
    }

    fn from_problem(problem: &Problem) -> Self {
        Self::new(false, problem.reason, problem.message.clone())
    }

    fn from_part<T>(part: &Part<T>, ready: impl FnOnce(&T) -> Self) -> Self {
        part.as_ref().map_or_else(Self::from_problem, ready)
    }

    fn from_availability(availability: &Availability) -> Self {
        Self::new(availability.available, availability.reason, availability.message.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{build::fixture, reconcile::provisioned::Notes};

    fn flow() -> OrderFlow {
        let mut flow = OrderFlow::new("main", fixture::spec(&json!({})));
        flow.metadata.generation = Some(7);
        flow
    }

    fn reconciled<'a>(pipeline: &'a Pipeline, provisioned: &'a Provisioned, available: bool) -> Report<'a> {
        let reason = if available { Reason::Available } else { Reason::Progressing };
        let availability = || Ok(Availability { available, reason, message: "of 2 pods".to_owned() });
        Report::Reconciled {
            pipeline,
            provisioned,
            workloads: Workloads { producer: availability(), consumer: availability() },
        }
    }

    fn provisioned(shard2: Part<i64>) -> Provisioned {
        Provisioned {
            shards: vec![Ok(1), shard2],
            bucket: Ok(Vec::new()),
            topic: Ok(Vec::new()),
            notes: Notes::default(),
            suppressed: false,
        }
    }

    fn found(status: &OrderFlowStatus, kind: Kind) -> (String, String) {
        let condition = status.conditions.iter().find(|condition| condition.type_ == kind.as_str()).unwrap();
        (condition.status.clone(), condition.reason.clone())
    }

    fn pair(status: &str, reason: Reason) -> (String, String) {
        (status.to_owned(), reason.as_str().to_owned())
    }

    #[test]
    fn all_conditions_exist_from_the_first_reconcile_with_their_generation() {
        let (flow, pipeline) = (flow(), fixture::pipeline(&json!({})));
        let fine = provisioned(Ok(1));
        for report in [
            reconciled(&pipeline, &fine, false),
            Report::Invalid(Problem::new(Reason::SpecInvalid, "spec.shards: no")),
            Report::Paused,
            Report::Deleting("pods".to_owned()),
            Report::DeletionPaused,
        ] {
            let status = status(&flow, &OrderFlowStatus::default(), &report, Timestamp::now());
            let kinds: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
            assert_eq!(kinds, Kind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>());
            assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(7)));
            assert_eq!(status.observed_generation, Some(7));
        }
    }

    #[test]
    fn ready_takes_the_reason_of_the_failing_condition() {
        let (flow, pipeline) = (flow(), fixture::pipeline(&json!({})));
        let down = || Err(Problem::new(Reason::Unreachable, "shard2: cannot connect"));
        for (shard2, available, shards, ready) in [
            (Ok(1), true, pair("True", Reason::Provisioned), pair("True", Reason::Available)),
            (Ok(1), false, pair("True", Reason::Provisioned), pair("False", Reason::Progressing)),
            (down(), true, pair("False", Reason::Unreachable), pair("False", Reason::Unreachable)),
            // The pods wait because of the shard.
            (down(), false, pair("False", Reason::Unreachable), pair("False", Reason::Unreachable)),
        ] {
            let provisioned = provisioned(shard2);
            let report = reconciled(&pipeline, &provisioned, available);
            let status = status(&flow, &OrderFlowStatus::default(), &report, Timestamp::now());
            assert_eq!(found(&status, Kind::ShardsReady), shards);
            assert_eq!(found(&status, Kind::Ready), ready);
        }
    }

    #[test]
    fn only_changed_conditions_get_a_new_transition_time() {
        let (flow, pipeline, fine) = (flow(), fixture::pipeline(&json!({})), provisioned(Ok(1)));
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = status(&flow, &OrderFlowStatus::default(), &reconciled(&pipeline, &fine, true), at(10));
        let second = status(&flow, &first, &reconciled(&pipeline, &fine, true), at(20));
        assert_eq!(first, second);
        let down = provisioned(Err(Problem::new(Reason::Unreachable, "shard2: cannot connect")));
        let third = status(&flow, &second, &reconciled(&pipeline, &down, true), at(30));
        for condition in &third.conditions {
            let changed = matches!(condition.type_.as_str(), "Ready" | "ShardsReady");
            assert_eq!(condition.last_transition_time.0, at(if changed { 30 } else { 10 }), "{}", condition.type_);
        }
        assert_eq!(
            (third.shards_ready.as_deref(), third.shards[1].reason.as_deref()),
            (Some("1/2"), Some("Unreachable"))
        );
    }

    #[test]
    fn a_long_message_is_cut() {
        let long = || Err(Problem::new(Reason::Unreachable, "ä".repeat(4096)));
        let (flow, pipeline, down) = (flow(), fixture::pipeline(&json!({})), provisioned(long()));
        let status = status(&flow, &OrderFlowStatus::default(), &reconciled(&pipeline, &down, true), Timestamp::now());
        let messages: Vec<&str> = status.conditions.iter().map(|condition| condition.message.as_str()).collect();
        assert!(messages.iter().all(|message| message.len() <= LONGEST_MESSAGE), "{messages:?}");
        assert_eq!(messages.iter().filter(|message| message.ends_with('…')).count(), 2, "{messages:?}");
    }

    #[test]
    fn a_pause_keeps_all_other_conditions() {
        let (flow, pipeline, fine) = (flow(), fixture::pipeline(&json!({})), provisioned(Ok(1)));
        let before = status(&flow, &OrderFlowStatus::default(), &reconciled(&pipeline, &fine, true), Timestamp::now());
        let mut changed = flow.clone();
        changed.metadata.generation = Some(8);
        let after = status(&changed, &before, &Report::Paused, Timestamp::now());
        assert_eq!(found(&after, Kind::Paused), pair("True", Reason::PauseRequested));
        assert_eq!(after.observed_generation, Some(7));
        assert_eq!(found(&after, Kind::Ready), pair("True", Reason::Available));
        assert_eq!(before.conditions[..6], after.conditions[..6]);
    }

    #[test]
    fn a_field_that_is_no_longer_set_is_removed() {
        let before = OrderFlowStatus { topic: Some("orders@kafka:9092".to_owned()), ..OrderFlowStatus::default() };
        assert_eq!(difference(&before, &OrderFlowStatus::default())["topic"], Value::Null);
    }
}
