//! Emits an Event for each new problem and when the resource becomes ready. The status has the current state; Events
//! report changes. A lost Event is harmless, so writing one has a short timeout.

use std::time::Duration;

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};

use super::context::Context;
use crate::{
    condition::{Class, Reason},
    crd::OrderFlowStatus,
    kubernetes::{FIELD_MANAGER, explain},
};

/// Longest wait until the API server accepts an event.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The API server's limit for a note.
const LONGEST_NOTE: usize = 1024;

#[derive(Clone, Copy)]
pub enum Severity {
    Normal,
    Warning,
}

pub async fn emit_changes(
    context: &Context,
    object: &impl kube::Resource<DynamicType = ()>,
    before: &OrderFlowStatus,
    after: &OrderFlowStatus,
) {
    for (severity, condition) in notable_changes(before, after) {
        emit(context, object, severity, &condition.reason, &condition.type_, &condition.message).await;
    }
}

/// Emits an Event. `action` names the operation or the checked condition.
pub async fn emit(
    context: &Context,
    object: &impl kube::Resource<DynamicType = ()>,
    severity: Severity,
    reason: &str,
    action: &str,
    note: &str,
) {
    let regarding = object.object_ref(&());
    match severity {
        Severity::Normal => tracing::info!(reason, note, "event"),
        Severity::Warning => tracing::warn!(reason, note, "event"),
    }
    let api: Api<Event> = Api::namespaced(context.client.clone(), regarding.namespace.as_deref().unwrap_or_default());
    let event = event(regarding, severity, reason, action, note, &context.identity);
    match tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &event)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(error = explain(&error), "cannot write the event"),
        Err(_) => tracing::debug!("cannot write the event: no answer in time"),
    }
}

/// Returns the changes that deserve an Event: a condition that fails for a new reason, and readiness. Progress and
/// waiting for another part do not.
fn notable_changes<'a>(before: &OrderFlowStatus, after: &'a OrderFlowStatus) -> Vec<(Severity, &'a Condition)> {
    let changed = |condition: &&Condition| {
        let old = before.conditions.iter().find(|old| old.type_ == condition.type_);
        old.is_none_or(|old| (&old.status, &old.reason) != (&condition.status, &condition.reason))
    };
    let severity = |condition: &Condition| {
        let is = |reason: Reason| condition.reason == reason.as_str();
        let problem = Reason::ALL.iter().any(|reason| is(*reason) && reason.class() != Class::Fine);
        match (condition.type_.as_str(), condition.status.as_str()) {
            ("Ready" | "Paused", "True") => Some(Severity::Normal),
            // Ready repeats another condition, unless there is none that could report the problem.
            ("Ready", "False")
                if [Reason::SpecInvalid, Reason::Undecodable, Reason::InternalError].into_iter().any(is) =>
            {
                Some(Severity::Warning)
            }
            ("Ready", _) => None,
            (_, "False") if problem => Some(Severity::Warning),
            _ => None,
        }
    };
    after.conditions.iter().filter(changed).filter_map(|condition| Some((severity(condition)?, condition))).collect()
}

/// Cuts the text to at most that many bytes, with an ellipsis.
pub fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest - '…'.len_utf8()));
        text.push('…');
    }
    text
}

fn event(
    regarding: ObjectReference,
    severity: Severity,
    reason: &str,
    action: &str,
    note: &str,
    identity: &str,
) -> Event {
    let now = Timestamp::now();
    let note = cut(note.to_owned(), LONGEST_NOTE);
    Event {
        metadata: ObjectMeta {
            namespace: regarding.namespace.clone(),
            name: Some(format!("{}.{:x}", regarding.name.as_deref().unwrap_or_default(), now.as_nanosecond())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(match severity {
            Severity::Normal => "Normal".to_owned(),
            Severity::Warning => "Warning".to_owned(),
        }),
        reason: Some(reason.to_owned()),
        action: Some(action.to_owned()),
        note: Some(note),
        regarding: Some(regarding),
        reporting_controller: Some(FIELD_MANAGER.to_owned()),
        reporting_instance: Some(identity.chars().take(128).collect()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn status(kind: &str, status: &str, reason: Reason) -> OrderFlowStatus {
        let condition = Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.as_str().to_owned(),
            message: "why".to_owned(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        };
        OrderFlowStatus { conditions: vec![condition], ..OrderFlowStatus::default() }
    }

    #[test]
    fn a_text_is_cut_between_two_characters() {
        for (text, longest, expected) in
            [("abcd", 4, "abcd"), ("abcde", 4, "a…"), ("aäbc", 5, "aäbc"), ("aäbcd", 5, "a…")]
        {
            assert_eq!(cut(text.to_owned(), longest), expected, "{text:?} in {longest}");
        }
    }

    #[test]
    fn a_new_reason_of_a_failure_is_notable_once() {
        let down = status("ShardsReady", "False", Reason::Unreachable);
        let other = status("ShardsReady", "False", Reason::OwnedByAnother);
        let well = status("ShardsReady", "True", Reason::Provisioned);
        let waiting = status("ProducerAvailable", "False", Reason::Progressing);
        let repeated = status("Ready", "False", Reason::Unreachable);
        let ready = status("Ready", "True", Reason::Available);
        let none = OrderFlowStatus::default();
        for (before, after, count) in [
            (&none, &down, 1),
            (&down, &down, 0),
            (&down, &other, 1),
            (&down, &well, 0),
            (&none, &waiting, 0),
            (&none, &repeated, 0),
            (&none, &ready, 1),
        ] {
            assert_eq!(notable_changes(before, after).len(), count, "{before:?} {after:?}");
        }
    }
}
