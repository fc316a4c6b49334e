//! The findings in Kafka about the orders of a slice: each has one event, and one notification once the consumers have
//! passed its event.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashSet},
};

use orderflow_core::{OrderId, ShardMap, Timestamp, UserId, event::source_header, json};
use orderflow_service::kafka::header;
use rdkafka::{Message, message::BorrowedMessage};
use serde::Deserialize;
use tokio::task::block_in_place;

use super::{
    finding::{EXAMPLES, Event, Notification, Place, Unknown},
    progress::Progress,
    slice::{Accepted, Queued, Session, Slice},
    topics::{Kafka, Log, Offsets, moment_of},
};

/// Searches after which a record counts as missing: just after a change of leader the end of a log may lag for a
/// moment.
const SEARCHES: u32 = 2;

/// Records of orders outside of the slice that are checked at once.
const UNKNOWN_BATCH: usize = 10_000;

/// The findings in Kafka about the orders of a slice, beside those that each order holds.
pub struct KafkaFindings {
    /// Next offsets of the group.
    committed: Offsets,
    /// Partitions and offsets of events that are dead letters.
    dead_letters: HashSet<(i32, i64)>,
    /// Times since which nothing is missing from the topics; only read if a record is missing.
    events_since: Option<Timestamp>,
    notifications_since: Option<Timestamp>,
    /// Times before which retention may have deleted records.
    events_kept: Timestamp,
    notifications_kept: Timestamp,
    /// Partitions whose committed offset is beyond their end: the topic was recreated, and consumers stop.
    pub lost: BTreeSet<i32>,
    pub unknown_events: Unknown,
    pub unknown_notifications: Unknown,
}

impl KafkaFindings {
    /// Reads events, committed offsets and notifications, in this order.
    pub async fn collect(
        kafka: &Kafka,
        slice: &mut Slice,
        shards: &mut [Session],
        map: &ShardMap,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let mut findings = Self {
            committed: Offsets::new(),
            dead_letters: HashSet::new(),
            events_since: None,
            notifications_since: None,
            events_kept: kafka.orders().kept_since(),
            notifications_kept: kafka.notifications().kept_since(),
            lost: BTreeSet::new(),
            unknown_events: Unknown::default(),
            unknown_notifications: Unknown::default(),
        };
        let published = |order: &Accepted| order.queued == Queued::No;
        let mut search = Search { shards, map, progress };
        findings.unknown_events = search.run(kafka.orders(), slice, |order| &mut order.events, published).await?;
        if slice.orders.values().any(|order| published(order) && order.events.is_empty()) {
            findings.events_since = block_in_place(|| kafka.orders().intact_since())?;
        }

        // Between events and notifications: every event below these offsets has its notification by then.
        findings.read_committed(kafka.orders())?;
        let passed = |order: &Accepted| order.events.iter().any(|event| findings.has_passed(event));
        findings.unknown_notifications =
            search.run(kafka.notifications(), slice, |order| &mut order.notifications, passed).await?;

        let unnotified = slice.orders.values().filter(|order| order.notifications.is_empty());
        let passed = unnotified.flat_map(|order| &order.events).filter(|event| findings.has_passed(event));
        let unnotified: HashSet<_> = passed.map(|event| (event.partition, event.offset)).collect();
        if !unnotified.is_empty() {
            findings.dead_letters = block_in_place(|| dead_letters(kafka, slice.from, &unnotified))?;
            findings.notifications_since = block_in_place(|| kafka.notifications().intact_since())?;
        }
        Ok(findings)
    }

    pub fn event(&self, order: &Accepted) -> Event {
        match (order.events.len(), order.queued) {
            (0, Queued::Waiting) => Event::Waiting,
            (0, Queued::Refused) => Event::Refused,
            (0, Queued::No) if is_since(self.events_since, order.created_at) => Event::Missing,
            (0, Queued::No) if order.created_at < self.events_kept => Event::Expired,
            (0, Queued::No) => Event::Deleted,
            (1, _) => Event::Published,
            _ => Event::Twice,
        }
    }

    pub fn notification(&self, order: &Accepted) -> Notification {
        match (order.notifications.len(), &*order.events) {
            (0, []) if order.queued == Queued::Waiting => Notification::Waiting,
            (0, []) => Notification::NoEvent,
            (0, events) if !events.iter().all(|event| self.has_passed(event)) => Notification::Waiting,
            (0, events) => {
                match events.iter().find(|event| !self.dead_letters.contains(&(event.partition, event.offset))) {
                    None => Notification::DeadLetter,
                    Some(event) if is_since(self.notifications_since, event.produced_at) => Notification::Missing,
                    Some(event) if event.produced_at < self.notifications_kept => Notification::Expired,
                    Some(_) => Notification::Deleted,
                }
            }
            (1, _) => Notification::Sent,
            _ => Notification::Twice,
        }
    }

    fn read_committed(&mut self, orders: Log<'_>) -> anyhow::Result<()> {
        let (mut committed, ends) = block_in_place(|| anyhow::Ok((orders.committed()?, orders.ends()?)))?;
        for (partition, offset) in &mut committed {
            if ends.get(partition).is_none_or(|end| *offset > *end) {
                self.lost.insert(*partition);
                *offset = 0;
            }
        }
        self.committed = committed;
        Ok(())
    }

    /// Returns true if the group has handled an event.
    fn has_passed(&self, event: &Place) -> bool {
        self.committed.get(&event.partition).is_some_and(|next| event.offset < *next)
    }
}

fn is_since(since: Option<Timestamp>, moment: Timestamp) -> bool {
    since.is_some_and(|since| moment >= since)
}

/// A search for a slice's orders in a topic.
struct Search<'run> {
    shards: &'run mut [Session],
    map: &'run ShardMap,
    progress: &'run Progress,
}

impl Search<'_> {
    /// Notes the places of the orders in the topic. Searches to its end for `expected` orders; without them, or once
    /// they are found, the search ends after the slice.
    async fn run(
        &mut self,
        log: Log<'_>,
        slice: &mut Slice,
        found: fn(&mut Accepted) -> &mut Vec<Place>,
        expected: impl Fn(&Accepted) -> bool,
    ) -> anyhow::Result<Unknown> {
        let mut searches = 1;
        loop {
            let (awaited, unknown) = self.read(log, slice, found, &expected).await?;
            if awaited == 0 || searches == SEARCHES {
                return Ok(unknown);
            }
            searches += 1;
            slice.orders.values_mut().for_each(|order| found(order).clear());
        }
    }

    /// Searches once, and also returns how many expected orders were not found.
    async fn read(
        &mut self,
        log: Log<'_>,
        slice: &mut Slice,
        found: fn(&mut Accepted) -> &mut Vec<Place>,
        expected: impl Fn(&Accepted) -> bool,
    ) -> anyhow::Result<(usize, Unknown)> {
        let mut awaited = slice.orders.values().filter(|order| expected(order)).count();
        let (mut unknown, mut unmatched, mut records) = (Unknown::default(), Vec::new(), 0);
        let mut reading = block_in_place(|| log.read(slice.from))?;
        while !reading.is_done() && (awaited > 0 || slice.to.is_none_or(|to| !reading.has_passed(to))) {
            let found_records = block_in_place(|| reading.next(|record| Some(RecordRef::from_record(record))))?;
            records += found_records.len();
            for record in found_records.into_iter().flatten() {
                if let Some(order) = slice.orders.get_mut(&record.order_id) {
                    if found(order).is_empty() && expected(order) {
                        awaited -= 1;
                    }
                    found(order).push(record.place);
                } else if slice.contains(record.accepted_at) {
                    unmatched.push(record);
                }
            }
            if unmatched.len() > UNKNOWN_BATCH {
                self.count_unknown(&mut unmatched, &mut unknown).await?;
            }
            self.progress.print(|| format!("{records} records of {}", log.topic));
        }
        drop(reading);
        self.count_unknown(&mut unmatched, &mut unknown).await?;
        Ok((awaited, unknown))
    }

    /// Counts the records whose orders no shard has. The shards are queried again, since an order may have been stored
    /// after its shard's snapshot. A record is younger than its order, so an order that no shard has now was never
    /// stored.
    async fn count_unknown(&mut self, unmatched: &mut Vec<RecordRef>, unknown: &mut Unknown) -> anyhow::Result<()> {
        let ids: Vec<OrderId> = unmatched.iter().map(|record| record.order_id).collect();
        let mut known = HashSet::new();
        for shard in self.shards.iter_mut().filter(|_| !ids.is_empty()) {
            known.extend(shard.existing(&ids).await?);
        }
        for record in unmatched.drain(..).filter(|record| !known.contains(&record.order_id)) {
            let shard = self.map.shard_of(&UserId::from_stored(record.user_id)).index.get();
            *unknown.counts.entry(shard).or_default() += 1;
            if unknown.first.len() < EXAMPLES {
                unknown.first.push(record.order_id);
            }
        }
        Ok(())
    }
}

/// A reference to an order, in an event or a notification.
struct RecordRef {
    order_id: OrderId,
    user_id: String,
    accepted_at: Timestamp,
    place: Place,
}

impl RecordRef {
    /// Reads the reference. `None` for any other record, of which consumers make a dead letter.
    fn from_record(record: &BorrowedMessage<'_>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Value<'value> {
            order_id: OrderId,
            #[serde(borrow)]
            user_id: Cow<'value, str>,
            /// The time of acceptance, under the event's name or the notification's.
            #[serde(alias = "accepted_at")]
            timestamp: Timestamp,
        }
        let value: Value<'_> = json::from_object(record.payload()?).ok()?;
        Some(Self {
            order_id: value.order_id,
            user_id: value.user_id.into_owned(),
            accepted_at: value.timestamp,
            place: Place {
                partition: record.partition(),
                offset: record.offset(),
                produced_at: Timestamp::from_unix_microseconds(moment_of(record))?,
            },
        })
    }
}

/// Returns those of `events` that are dead letters. Letters from before the slice are not read.
fn dead_letters(kafka: &Kafka, from: Timestamp, events: &HashSet<(i32, i64)>) -> anyhow::Result<HashSet<(i32, i64)>> {
    let orders = kafka.orders().topic;
    let source = |letter: &BorrowedMessage<'_>| {
        let text = |name| header::last_text(letter.headers(), name);
        let source = (text(source_header::PARTITION)?.parse().ok()?, text(source_header::OFFSET)?.parse().ok()?);
        (text(source_header::TOPIC)? == orders && events.contains(&source)).then_some(source)
    };
    let (mut dead, mut reading) = (HashSet::new(), kafka.dead_letters().read(from)?);
    while !reading.is_done() {
        dead.extend(reading.next(source)?);
    }
    Ok(dead)
}
