//! Events: one for each new problem, and one when the resource becomes ready. What goes on is in the status; events tell of
//! changes. A lost one is no harm, so nothing waits for them long.

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

use crate::{
    condition::{Class, Reason},
    context::{Context, FIELD_MANAGER, explain},
    crd::OrderFlowStatus,
};

/// Longest wait until the API server accepts an event.
const PATIENCE: Duration = Duration::from_secs(5);

/// The API server takes no longer ones.
const LONGEST_NOTE: usize = 1024;

#[derive(Clone, Copy)]
pub enum Severity {
    Normal,
    Warning,
}

pub async fn tell_changes(
    context: &Context,
    object: &impl kube::Resource<DynamicType = ()>,
    before: &OrderFlowStatus,
    after: &OrderFlowStatus,
) {
    for (severity, condition) in news(before, after) {
        tell(context, object, severity, &condition.reason, &condition.type_, &condition.message).await;
    }
}

/// `action` says what was done or looked at.
pub async fn tell(
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
    match tokio::time::timeout(PATIENCE, api.create(&PostParams::default(), &event)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(error = explain(&error), "the event could not be written"),
        Err(_) => tracing::debug!("the event could not be written: no answer in time"),
    }
}

/// What somebody should hear of: a condition that fails for another reason than before, and readiness. That something is
/// under way, or waits for something else, is no news.
fn news<'a>(before: &OrderFlowStatus, after: &'a OrderFlowStatus) -> Vec<(Severity, &'a Condition)> {
    let changed = |condition: &&Condition| {
        let old = before.conditions.iter().find(|old| old.type_ == condition.type_);
        old.is_none_or(|old| (&old.status, &old.reason) != (&condition.status, &condition.reason))
    };
    let severity = |condition: &Condition| {
        let is = |reason: Reason| condition.reason == reason.as_str();
        let problem = Reason::ALL.iter().any(|reason| is(*reason) && reason.class() != Class::Fine);
        match (condition.type_.as_str(), condition.status.as_str()) {
            ("Ready" | "Paused", "True") => Some(Severity::Normal),
            // Ready repeats what another condition says, unless there is none that could.
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

/// The text, or as much of its beginning as fits into that many bytes, with an ellipsis.
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
    fn a_text_is_cut_between_two_letters() {
        for (text, longest, expected) in
            [("abcd", 4, "abcd"), ("abcde", 4, "a…"), ("aäbc", 5, "aäbc"), ("aäbcd", 5, "a…")]
        {
            assert_eq!(cut(text.to_owned(), longest), expected, "{text:?} in {longest}");
        }
    }

    #[test]
    fn a_new_reason_to_fail_is_news_once() {
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
            assert_eq!(news(before, after).len(), count, "{before:?} {after:?}");
        }
    }
}
