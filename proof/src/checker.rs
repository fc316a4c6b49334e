//! The checker: holds what is there against what the clients were told. Pure, so that it can be shown to notice.
//!
//! After Jepsen's total-queue: an order is acked, lost, duplicated, unexpected or recovered. An order whose outcome no
//! client knows may be there or not, but wholly: a row implies its receipt, its event and its notification.

mod effects;
mod order;
mod outcome;

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use uuid::Uuid;

use crate::{
    history::{History, Time, Try},
    observation::Observation,
    workload::Plan,
};

/// What is wrong with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something that must be there is not.
    Lost,
    /// Something is there more than once.
    Duplicated,
    /// Something is there, or was answered, that no client's request explains.
    Unexpected,
    /// Something is there with other values than were ordered.
    Different,
    /// Its event or notification comes before one of an order that was answered before this one was sent.
    Reordered,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: Kind,
    /// Number of the plan, where it is known.
    pub attempt: Option<u64>,
    pub order: Option<Uuid>,
    pub what: String,
}

#[derive(Debug, Default)]
pub struct Verdict {
    pub findings: Vec<Finding>,
    pub counts: Counts,
    /// One for each order that arrived everywhere and that a client was told of.
    pub trails: Vec<Trail>,
}

/// When an order was where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trail {
    /// From 1.
    pub shard: usize,
    pub sent: Time,
    pub acked: Time,
    pub notified: Time,
    pub receipt: Time,
}

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub attempts: usize,
    pub requests: usize,
    /// Orders that a client was told 201 of.
    pub acked: usize,
    pub replayed: usize,
    pub refused: usize,
    pub not_accepted: usize,
    /// Requests whose client does not know what became of them.
    pub unknown: usize,
    /// Attempts with such a request whose order is there all the same, wholly.
    pub recovered: usize,
}

/// What a plan's requests say, beside what is there of it.
pub(crate) struct Attempt<'a> {
    plan: &'a Plan,
    tries: Vec<&'a Try>,
    /// Indices into the observation's rows.
    rows: Vec<usize>,
}

/// Checks everything.
pub fn check(history: &History, seen: &Observation) -> Verdict {
    let mut attempts: BTreeMap<u64, Attempt<'_>> =
        history.plans.iter().map(|plan| (plan.number, Attempt { plan, tries: Vec::new(), rows: Vec::new() })).collect();
    for tried in &history.tries {
        if let Some(attempt) = attempts.get_mut(&tried.attempt) {
            attempt.tries.push(tried);
        }
    }
    let mut verdict = Verdict::default();
    for (index, row) in seen.rows.iter().enumerate() {
        match Plan::number_in(&row.product_name).and_then(|number| attempts.get_mut(&number)) {
            Some(attempt) => attempt.rows.push(index),
            None => verdict.find(Kind::Unexpected, None, Some(row.id), "a row that nobody ordered".to_owned()),
        }
    }
    for attempt in attempts.values() {
        outcome::check(attempt, seen, &mut verdict);
    }
    // Of two orders with one id only one would be looked at, and the ids are the tables' keys, so both shards have it.
    let mut owners: HashMap<Uuid, &Attempt<'_>> = HashMap::new();
    for attempt in attempts.values() {
        for &row in &attempt.rows {
            let id = seen.rows[row].id;
            if owners.insert(id, attempt).is_some() {
                verdict.find(Kind::Duplicated, Some(attempt.plan.number), Some(id), "two rows have its id".to_owned());
            }
        }
    }
    effects::check(&owners, seen, &mut verdict);
    order::check(&owners, seen, &mut verdict);
    for event in &seen.dead {
        verdict.find(Kind::Lost, None, Some(*event), "its event is in outbox_dead".to_owned());
    }
    for letter in &seen.dead_letters {
        let what = format!("a dead letter, {}/{}: {}", letter.partition, letter.offset, letter.text());
        verdict.find(Kind::Unexpected, None, None, what);
    }
    for what in &seen.unreadable {
        verdict.find(Kind::Unexpected, None, None, what.clone());
    }
    verdict
}

impl Verdict {
    pub fn passed(&self) -> bool {
        self.findings.is_empty()
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.findings.iter().filter(|finding| finding.kind == kind).count()
    }

    pub fn find(&mut self, kind: Kind, attempt: Option<u64>, order: Option<Uuid>, what: String) {
        self.findings.push(Finding { kind, attempt, order, what });
    }
}

#[cfg(test)]
mod tests;
