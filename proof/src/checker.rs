//! The checker: compares the final state with the clients' history. Pure, so that tests can show what it notices.
//!
//! After Jepsen's total-queue: an order is acked, lost, duplicated, unexpected or recovered. An order whose outcome no
//! client knows may exist or not, but wholly: a row implies its receipt, its event and its notification.

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

/// A kind of defect of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A part that must exist is missing.
    Lost,
    /// A part exists more than once.
    Duplicated,
    /// A part exists, or was returned, that no client's request explains.
    Unexpected,
    /// A part exists with other values than were ordered.
    Different,
    /// An event or notification comes before one of an order that was answered before this order was sent.
    Reordered,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: Kind,
    /// The number of the plan, where it is known.
    pub attempt: Option<u64>,
    pub order: Option<Uuid>,
    pub what: String,
}

#[derive(Debug, Default)]
pub struct Verdict {
    pub findings: Vec<Finding>,
    pub counts: Counts,
    /// The trails of the orders that arrived everywhere and that a client knows to be stored.
    pub trails: Vec<Trail>,
}

/// The times at which an order reached each place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trail {
    /// The number of the shard, from 1.
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
    /// Orders that were answered 201.
    pub acked: usize,
    pub replayed: usize,
    pub refused: usize,
    pub not_accepted: usize,
    /// Requests whose client does not know the outcome.
    pub unknown: usize,
    /// Attempts with an unknown outcome whose order exists nevertheless, wholly.
    pub recovered: usize,
}

/// The requests of a plan, with the rows that exist of it.
pub(crate) struct Attempt<'a> {
    plan: &'a Plan,
    tries: Vec<&'a Try>,
    /// Indices into the observation's rows.
    rows: Vec<usize>,
}

/// Checks the final state of a run.
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
            None => verdict.find(Kind::Unexpected, None, Some(row.id), "a row without an order".to_owned()),
        }
    }
    for attempt in attempts.values() {
        outcome::check(attempt, seen, &mut verdict);
    }
    // Of two orders with one id only one would be checked. The id is the tables' key, so each shard has one of them.
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
