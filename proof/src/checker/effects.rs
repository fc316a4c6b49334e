//! Checks the effects of each order against the rows. Each row has one receipt, one event and one notification, with
//! the right contents, whether its client knows of it or not. None of these exists without a row.

use std::collections::{HashMap, HashSet};

use orderflow_core::{
    Money, Notification, Order, OrderCreated, ProductName, Quantity, Timestamp, UserId, receipt, receipt_key,
};
use uuid::Uuid;

use super::{Attempt, Kind, Trail, Verdict};
use crate::{
    history::{Outcome, Time, Try},
    observation::{Found, Observation, Row},
};

pub(super) fn check(owners: &HashMap<Uuid, &Attempt<'_>>, seen: &Observation, verdict: &mut Verdict) {
    let events = by_order(&seen.events, |event| event.order_id);
    let notifications = by_order(&seen.notifications, |notification| notification.order_id);
    let mut receipts: HashSet<&str> = HashSet::new();
    for row in &seen.rows {
        let Some(owner) = owners.get(&row.id) else { continue };
        let mut find = |kind, what: String| verdict.find(kind, Some(owner.plan.number), Some(row.id), what);
        let known = if owner.was_acked(row.id) { "acked" } else { "its outcome was unknown" };

        // Compared with the values that were ordered, not with those of the row.
        let order = as_ordered(owner, row);
        let Some(map) = seen.maps.of(row.map_epoch) else {
            find(Kind::Different, format!("it was placed under map {}, which no shard has", row.map_epoch));
            continue;
        };
        let shard = map.shard_of(&order.user_id);
        receipts.insert(&row.receipt_s3_key);
        if row.receipt_s3_key != receipt_key::key(&order.user_id, row.id) {
            find(Kind::Different, format!("its receipt is at {}", row.receipt_s3_key));
        }
        let mut receipt_stored = 0;
        match seen.receipts.get(&row.receipt_s3_key) {
            None => find(Kind::Lost, format!("no receipt ({known})")),
            Some(stored) if !stored.has_text(&receipt::text(&order, shard)) => {
                find(Kind::Different, format!("its receipt has another text, of MD5 {}", stored.tag));
            }
            Some(stored) => receipt_stored = stored.stored,
        }

        let event = match events.get(&row.id).map(Vec::as_slice) {
            None | Some([]) => {
                find(Kind::Lost, format!("no event ({known})"));
                None
            }
            Some([event]) => Some(*event),
            Some(several) => {
                find(Kind::Duplicated, format!("{} events at {}", several.len(), places(several)));
                None
            }
        };
        if let Some(event) = event
            && event.value != OrderCreated::new(&order, shard)
        {
            find(Kind::Different, format!("its event has {:?}", event.value));
        }
        match notifications.get(&row.id).map(Vec::as_slice) {
            None | Some([]) => find(Kind::Lost, format!("no notification ({known})")),
            Some([notification]) => {
                let value = &notification.value;
                let wanted = Notification::message_for(&OrderCreated::new(&order, shard));
                if value.message != wanted || value.user_id != owner.plan.user_id || value.event_id != row.id {
                    find(Kind::Different, format!("its notification has {value:?}"));
                }
                if let Some(event) = event
                    && (notification.partition, value.partition, value.offset)
                        != (event.partition, event.partition, event.offset)
                {
                    let what = format!(
                        "its notification is in partition {} and names {}/{}, its event is {}/{}",
                        notification.partition, value.partition, value.offset, event.partition, event.offset
                    );
                    find(Kind::Different, what);
                }
                if let (Some(sent), Some(acked)) = (owner.sent(row.id), owner.acked_at(row.id)) {
                    let notified = value.notified_at.unix_microseconds();
                    verdict.trails.push(Trail { shard: row.shard, sent, acked, notified, receipt: receipt_stored });
                }
            }
            Some(several) => {
                find(Kind::Duplicated, format!("{} notifications at {}", several.len(), places(several)));
            }
        }
    }
    for key in seen.receipts.keys().filter(|key| !receipts.contains(key.as_str())) {
        verdict.find(Kind::Unexpected, None, None, format!("a receipt without an order: {key}"));
    }
    let unknown = |ids: Vec<Uuid>, what: &str, verdict: &mut Verdict| {
        for id in ids.into_iter().filter(|id| !owners.contains_key(id)) {
            verdict.find(Kind::Unexpected, None, Some(id), format!("{what} without an order"));
        }
    };
    unknown(events.keys().copied().collect(), "an event", verdict);
    unknown(notifications.keys().copied().collect(), "a notification", verdict);
}

fn by_order<T>(found: &[Found<T>], id: impl Fn(&T) -> Uuid) -> HashMap<Uuid, Vec<&Found<T>>> {
    let mut orders: HashMap<Uuid, Vec<&Found<T>>> = HashMap::new();
    for found in found {
        orders.entry(id(&found.value)).or_default().push(found);
    }
    orders
}

fn places<T>(found: &[&Found<T>]) -> String {
    let places: Vec<_> = found.iter().map(|found| format!("{}/{}", found.partition, found.offset)).collect();
    places.join(", ")
}

/// Returns the order that the row must contain: the ordered values, with the id and the time that only the row knows.
fn as_ordered(owner: &Attempt<'_>, row: &Row) -> Order {
    let plan = owner.plan;
    let created_at = Timestamp::from(row.created_at);
    let user_id = UserId::from_stored(plan.user_id.clone());
    Order {
        id: row.id,
        receipt_s3_key: receipt_key::key(&user_id, row.id),
        user_id,
        product_name: ProductName::from_stored(plan.product_name.clone()),
        quantity: Quantity::from_stored(plan.quantity),
        price: Money::from_cents(plan.cents),
        status: Order::CREATED.into(),
        created_at,
        updated_at: created_at,
    }
}

impl Attempt<'_> {
    pub(super) fn was_acked(&self, order: Uuid) -> bool {
        self.tries.iter().any(|tried| matches!(tried.outcome, Outcome::Acked { id, .. } if id == order))
    }

    /// Returns when this order was first answered 201.
    pub(super) fn acked_at(&self, order: Uuid) -> Option<Time> {
        let acks = self.tries.iter().filter(|tried| matches!(tried.outcome, Outcome::Acked { id, .. } if id == order));
        acks.map(|tried| tried.answered).min()
    }

    /// Returns the earliest time at which the request that created the order may have been sent. Returns `None` if
    /// several requests could have created it and each would have created another order.
    pub(super) fn sent(&self, order: Uuid) -> Option<Time> {
        let of_this = |tried: &&&Try| match &tried.outcome {
            Outcome::Acked { id, .. } => *id == order,
            Outcome::Unknown { id, .. } => id.is_none_or(|id| id == order) || self.plan.idempotency_key.is_some(),
            Outcome::Refused { .. } | Outcome::NotAccepted => false,
        };
        let acked = self.was_acked(order) && self.plan.idempotency_key.is_none();
        let candidates = self.tries.iter().filter(|tried| !tried.conflicting).filter(of_this);
        let mut sent = candidates.filter(|tried| !acked || matches!(tried.outcome, Outcome::Acked { .. }));
        let first = sent.next()?.sent;
        let others: Vec<Time> = sent.map(|tried| tried.sent).collect();
        if self.plan.idempotency_key.is_none() && !others.is_empty() {
            return None;
        }
        others.into_iter().chain([first]).min()
    }
}
