//! The checker notices each kind of defect, and nothing else. The controls show the same on the real system.

use std::collections::BTreeMap;

use orderflow_core::{
    FIRST_EPOCH, Notification, Order, OrderCreated, ShardMap, Timestamp, UserId, receipt, receipt_key,
};
use time::OffsetDateTime;

use super::*;
use crate::{
    history::Outcome,
    observation::{Found, Receipt, Row, tag_of},
    workload::Manner,
};

/// Returns a plan whose user is on shard 1.
fn plan(number: u64, key: Option<&str>) -> Plan {
    Plan {
        number,
        user_id: "alice".to_owned(),
        product_name: format!("Lamp #{number}"),
        quantity: 2,
        cents: 14_999,
        idempotency_key: key.map(str::to_owned),
        manner: if key.is_some() { Manner::Insisting } else { Manner::Once },
    }
}

fn tried(attempt: u64, sent: Time, answered: Time, outcome: Outcome) -> Try {
    Try { attempt, conflicting: false, producer: "a".to_owned(), sent, answered, outcome }
}

fn acked(attempt: u64, id: Uuid, sent: Time) -> Try {
    tried(attempt, sent, sent + 10, Outcome::Acked { id, replayed: false })
}

fn unknown(attempt: u64) -> Try {
    tried(attempt, 0, 10, Outcome::Unknown { id: None, why: "connection lost".to_owned() })
}

/// Adds the whole trail of one order to an observation.
fn place(seen: &mut Observation, plan: &Plan, id: Uuid) {
    let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().unwrap();
    let now = OffsetDateTime::now_utc();
    let user_id = UserId::from_stored(plan.user_id.clone());
    let order = Order {
        id,
        receipt_s3_key: receipt_key::key(&user_id, id),
        user_id,
        product_name: orderflow_core::ProductName::from_stored(plan.product_name.clone()),
        quantity: orderflow_core::Quantity::from_stored(plan.quantity),
        price: orderflow_core::Money::from_cents(plan.cents),
        status: Order::CREATED.into(),
        created_at: Timestamp::from(now),
        updated_at: Timestamp::from(now),
    };
    let shard = map.shard_of(&order.user_id);
    let event = OrderCreated::new(&order, shard);
    seen.rows.push(Row {
        shard: plan.shard(),
        id,
        user_id: plan.user_id.clone(),
        product_name: plan.product_name.clone(),
        quantity: plan.quantity,
        cents: plan.cents,
        status: "created".to_owned(),
        receipt_s3_key: order.receipt_s3_key.clone(),
        created_at: OffsetDateTime::from(order.created_at),
        map_epoch: FIRST_EPOCH,
    });
    seen.maps.insert(FIRST_EPOCH, map.clone());
    seen.receipts
        .insert(order.receipt_s3_key.clone(), Receipt { tag: tag_of(&receipt::text(&order, shard)), stored: 0 });
    let offset = seen.events.len() as i64;
    seen.notifications.push(Found {
        partition: 0,
        offset,
        value: Notification {
            event_id: id,
            order_id: id,
            user_id: plan.user_id.clone(),
            message: Notification::message_for(&event),
            accepted_at: event.timestamp,
            published_at: event.timestamp,
            notified_at: event.timestamp,
            partition: 0,
            offset,
        },
    });
    seen.events.push(Found { partition: 0, offset, value: event });
}

/// Returns two orders of one user, one after the other, that arrived everywhere.
fn healthy() -> (History, Observation, [Uuid; 2]) {
    let (mut history, mut seen) = (History::default(), Observation::default());
    let ids = [Uuid::now_v7(), Uuid::now_v7()];
    for (number, id) in (1..).zip(ids) {
        let plan = plan(number, Some(&format!("key-{number}")));
        place(&mut seen, &plan, id);
        history.plans.push(plan);
        history.tries.push(acked(number, id, number as i64 * 100));
    }
    (history, seen, ids)
}

fn kinds(history: &History, seen: &Observation) -> Vec<Kind> {
    let verdict = check(history, seen);
    let kinds: std::collections::BTreeSet<_> = verdict.findings.iter().map(|finding| finding.kind).collect();
    kinds.into_iter().collect()
}

#[test]
fn orders_that_arrived_everywhere_once_pass() {
    let (history, seen, _) = healthy();
    let verdict = check(&history, &seen);
    assert_eq!(verdict.findings, []);
    assert_eq!((verdict.counts.attempts, verdict.counts.acked, verdict.trails.len()), (2, 2, 2));
}

#[test]
fn each_missing_part_of_an_acked_order_is_a_loss() {
    let breaks: [fn(&mut Observation); 4] = [
        |seen| {
            *seen = Observation { rows: vec![seen.rows.remove(0)], maps: seen.maps.clone(), ..Observation::default() }
        },
        |seen| _ = seen.receipts.pop_first(),
        |seen| _ = seen.events.remove(0),
        |seen| _ = seen.notifications.remove(0),
    ];
    for (number, take) in breaks.into_iter().enumerate() {
        let (history, mut seen, _) = healthy();
        take(&mut seen);
        assert_eq!(kinds(&history, &seen), [Kind::Lost], "{number}");
    }
}

#[test]
fn a_duplicate_event_or_notification_is_noticed() {
    let (history, mut seen, _) = healthy();
    seen.events.push(seen.events[0].clone());
    assert!(kinds(&history, &seen).contains(&Kind::Duplicated));
    let (history, mut seen, _) = healthy();
    seen.notifications.push(seen.notifications[0].clone());
    assert!(kinds(&history, &seen).contains(&Kind::Duplicated));
}

#[test]
fn a_row_or_receipt_without_a_request_is_unexpected() {
    let (mut history, seen, _) = healthy();
    history.plans.remove(0);
    history.tries.remove(0);
    assert!(kinds(&history, &seen).contains(&Kind::Unexpected));

    let (history, mut seen, _) = healthy();
    seen.receipts.insert("receipts/x/y.txt".to_owned(), Receipt { tag: tag_of(""), stored: 0 });
    assert_eq!(kinds(&history, &seen), [Kind::Unexpected]);
}

#[test]
fn values_that_differ_from_the_order_are_noticed() {
    let (history, mut seen, _) = healthy();
    seen.rows[0].cents += 1;
    assert_eq!(kinds(&history, &seen), [Kind::Different]);
    let (history, mut seen, _) = healthy();
    seen.rows[0].shard = 2;
    assert_eq!(kinds(&history, &seen), [Kind::Different]);
    let (history, mut seen, _) = healthy();
    seen.receipts.values_mut().for_each(|receipt| receipt.tag = tag_of("!"));
    assert_eq!(kinds(&history, &seen), [Kind::Different]);
}

#[test]
fn reordered_events_are_noticed() {
    let (history, mut seen, _) = healthy();
    seen.events.reverse();
    let verdict = check(&history, &seen);
    assert_eq!(verdict.count(Kind::Reordered), 1, "{:?}", verdict.findings);
    // Both orders were in flight at the same time, so their events may have any order.
    let (mut history, mut seen, _) = healthy();
    history.tries[1].sent = history.tries[0].sent;
    seen.events.reverse();
    assert_eq!(check(&history, &seen).count(Kind::Reordered), 0);
}

#[test]
fn an_order_with_unknown_outcome_exists_wholly_or_not_at_all() {
    for key in [None, Some("key")] {
        let history = History { plans: vec![plan(1, key)], tries: vec![unknown(1)] };
        assert_eq!(kinds(&history, &Observation::default()), []);

        let mut seen = Observation::default();
        place(&mut seen, &history.plans[0], Uuid::now_v7());
        let verdict = check(&history, &seen);
        assert_eq!((verdict.findings.len(), verdict.counts.recovered), (0, 1));
        seen.notifications.clear();
        assert_eq!(kinds(&history, &seen), [Kind::Lost]);
    }
}

#[test]
fn more_rows_than_the_requests_explain_are_duplicates() {
    for key in [None, Some("key")] {
        let id = Uuid::now_v7();
        let history = History { plans: vec![plan(1, key)], tries: vec![acked(1, id, 0)] };
        let mut seen = Observation::default();
        place(&mut seen, &history.plans[0], id);
        place(&mut seen, &history.plans[0], Uuid::now_v7());
        assert_eq!(kinds(&history, &seen), [Kind::Duplicated]);
    }
    // Two requests without a key are two orders; with the same key they are one.
    for (key, expected) in [(None, &[][..]), (Some("key"), &[Kind::Duplicated])] {
        let history = History { plans: vec![plan(1, key)], tries: vec![unknown(1), unknown(1)] };
        let mut seen = Observation::default();
        place(&mut seen, &history.plans[0], Uuid::now_v7());
        place(&mut seen, &history.plans[0], Uuid::now_v7());
        assert_eq!(kinds(&history, &seen), expected);
    }
}

#[test]
fn one_key_with_two_orders_is_noticed() {
    let ids = [Uuid::now_v7(), Uuid::now_v7()];
    let history =
        History { plans: vec![plan(1, Some("key"))], tries: vec![acked(1, ids[0], 0), acked(1, ids[1], 100)] };
    let mut seen = Observation::default();
    for id in ids {
        place(&mut seen, &history.plans[0], id);
    }
    assert!(kinds(&history, &seen).contains(&Kind::Duplicated));
}

#[test]
fn a_wrong_refusal_and_a_missing_one_are_noticed() {
    let refused = Outcome::Refused { status: 500, problem: "refused".to_owned() };
    let history = History { plans: vec![plan(1, Some("key"))], tries: vec![tried(1, 0, 1, refused)] };
    assert_eq!(kinds(&history, &Observation::default()), [Kind::Unexpected]);

    let (mut history, seen, ids) = healthy();
    let conflict = Try { conflicting: true, ..acked(1, ids[0], 500) };
    history.tries.push(conflict);
    assert_eq!(kinds(&history, &seen), [Kind::Unexpected]);
}

#[test]
fn refused_events_and_dead_letters_are_noticed() {
    let (history, mut seen, ids) = healthy();
    seen.dead.push(ids[0]);
    seen.dead_letters.push(orderflow_testbed::Record {
        partition: 0,
        offset: 0,
        key: None,
        value: None,
        headers: BTreeMap::new(),
        timestamp: None,
    });
    assert_eq!(kinds(&history, &seen), [Kind::Lost, Kind::Unexpected]);
}
