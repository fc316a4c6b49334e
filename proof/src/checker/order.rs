//! Checks the order: if a user's order A was answered before the user's order B was sent, A's event and A's
//! notification come before B's.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Attempt, Kind, Verdict};
use crate::{
    history::Time,
    observation::{Found, Observation},
};

pub(super) fn check(owners: &HashMap<Uuid, &Attempt<'_>>, seen: &Observation, verdict: &mut Verdict) {
    follow(owners, &seen.events, |event| event.order_id, "event", verdict);
    follow(owners, &seen.notifications, |notification| notification.order_id, "notification", verdict);
}

/// Follows the records in their order. For each user it keeps the latest send time of the orders whose records it has
/// passed. A record of an order that was answered before that time comes too late.
fn follow<T>(
    owners: &HashMap<Uuid, &Attempt<'_>>,
    records: &[Found<T>],
    order: impl Fn(&T) -> Uuid,
    what: &str,
    verdict: &mut Verdict,
) {
    let mut latest: HashMap<&str, (Time, i32, i64)> = HashMap::new();
    for record in records {
        let id = order(&record.value);
        let Some(owner) = owners.get(&id) else { continue };
        let user = owner.plan.user_id.as_str();
        if let (Some(answered), Some((sent, partition, offset))) = (owner.acked_at(id), latest.get(user))
            && answered < *sent
        {
            let what = format!(
                "its {what} at {}/{} comes after that at {partition}/{offset} of an order sent {} µs after its answer",
                record.partition,
                record.offset,
                sent - answered
            );
            verdict.find(Kind::Reordered, Some(owner.plan.number), Some(id), what);
        }
        if let Some(sent) = owner.sent(id) {
            let now = (sent, record.partition, record.offset);
            let latest = latest.entry(user).or_insert(now);
            *latest = now.max(*latest);
        }
    }
}
