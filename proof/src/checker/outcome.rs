//! Checks the clients' outcomes against the rows: each acked order is stored once, on the right shard, with the right
//! values, and a request explains each row.

use std::collections::HashSet;

use uuid::Uuid;

use super::{Attempt, Kind, Verdict};
use crate::{
    history::Outcome,
    observation::{Observation, Row},
    workload::{Manner, Plan},
};

pub(super) fn check(attempt: &Attempt<'_>, seen: &Observation, verdict: &mut Verdict) {
    let rows: Vec<&Row> = attempt.rows.iter().map(|&row| &seen.rows[row]).collect();
    count(attempt, &rows, verdict);
    refusals(attempt, verdict);
    let number = Some(attempt.plan.number);
    let (mut acked, mut made) = (HashSet::new(), 0);
    let (mut unknown, mut anonymous) = (HashSet::new(), 0);
    for tried in attempt.tries.iter().filter(|tried| !tried.conflicting) {
        match &tried.outcome {
            Outcome::Acked { id, replayed } => {
                acked.insert(*id);
                made += usize::from(!replayed);
            }
            Outcome::Unknown { id: Some(id), .. } => _ = unknown.insert(*id),
            Outcome::Unknown { id: None, .. } => anonymous += 1,
            Outcome::Refused { .. } | Outcome::NotAccepted => {}
        }
    }
    for id in &acked {
        if !rows.iter().any(|row| row.id == *id) {
            verdict.find(Kind::Lost, number, Some(*id), "it was answered 201 and is not stored".to_owned());
        }
    }
    let keyed = attempt.plan.idempotency_key.is_some();
    if keyed && acked.len() > 1 {
        let what = format!("one Idempotency-Key was answered with {} orders", acked.len());
        verdict.find(Kind::Duplicated, number, None, what);
    }
    if keyed && made > 1 {
        verdict.find(Kind::Unexpected, number, None, "one order was reported as new twice".to_owned());
    }
    // A row whose order was not acked must come from a request without a response.
    let unexplained: Vec<Uuid> =
        rows.iter().map(|row| row.id).filter(|id| !acked.contains(id) && !unknown.contains(id)).collect();
    let most = if keyed { usize::from(acked.is_empty() && anonymous + unknown.len() > 0) } else { anonymous };
    if unexplained.len() > most {
        let kind =
            if attempt.tries.is_empty() || attempt.plan.manner == Manner::Invalid || acked.is_empty() && most == 0 {
                Kind::Unexpected
            } else {
                Kind::Duplicated
            };
        let what = format!("{} rows, of which its requests explain {most}: {unexplained:?}", unexplained.len());
        verdict.find(kind, number, unexplained.first().copied(), what);
    } else if keyed && rows.len() > 1 {
        let what = format!("{} rows of one Idempotency-Key", rows.len());
        verdict.find(Kind::Duplicated, number, rows.first().map(|row| row.id), what);
    }
    for row in rows {
        if let Some(what) = difference(attempt.plan, row) {
            verdict.find(Kind::Different, number, Some(row.id), what);
        }
    }
}

fn count(attempt: &Attempt<'_>, rows: &[&Row], verdict: &mut Verdict) {
    let counts = &mut verdict.counts;
    counts.attempts += 1;
    counts.requests += attempt.tries.len();
    let (mut acked, mut unknown) = (HashSet::new(), 0);
    for tried in &attempt.tries {
        match &tried.outcome {
            Outcome::Acked { id, replayed } => {
                acked.insert(*id);
                counts.replayed += usize::from(*replayed);
            }
            Outcome::Refused { .. } => counts.refused += 1,
            Outcome::NotAccepted => counts.not_accepted += 1,
            Outcome::Unknown { .. } => unknown += 1,
        }
    }
    counts.acked += acked.len();
    counts.unknown += unknown;
    counts.recovered += usize::from(unknown > 0 && !rows.is_empty());
}

/// Checks that requests that break a rule were refused, and no others.
fn refusals(attempt: &Attempt<'_>, verdict: &mut Verdict) {
    for tried in &attempt.tries {
        let wanted = match (attempt.plan.manner, tried.conflicting) {
            (Manner::Invalid, _) => Some(400),
            (_, true) => Some(422),
            _ => None,
        };
        let what = match (&tried.outcome, wanted) {
            (Outcome::Acked { .. }, Some(status)) => format!("it was answered 201 instead of {status}"),
            (Outcome::Refused { status, problem }, _) if Some(*status) != wanted => {
                format!("it was answered {status}: {problem}")
            }
            _ => continue,
        };
        verdict.find(Kind::Unexpected, Some(attempt.plan.number), None, what);
    }
}

fn difference(plan: &Plan, row: &Row) -> Option<String> {
    let id = row.id;
    let wanted = (plan.shard(), &*plan.user_id, &*plan.product_name, plan.quantity, plan.cents, "created");
    let stored = (row.shard, &*row.user_id, &*row.product_name, row.quantity, row.cents, &*row.status);
    if wanted != stored {
        return Some(format!("ordered {wanted:?}, stored {stored:?}"));
    }
    // A UUIDv7 begins with the time of its creation.
    let made = id.get_timestamp().map(|at| at.to_unix());
    let stored = row.created_at.unix_timestamp();
    match made {
        Some((seconds, _)) if (seconds.cast_signed() - stored).abs() <= 1 => None,
        _ => Some(format!("the id {id} and created_at {stored} differ")),
    }
}
