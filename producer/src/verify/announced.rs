//! Which orders of a slice are announced: one event each, and one notification for what the consumers have passed.

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

/// How often something must have been looked for before it is missing: just after a change of leader the end of a log may
/// lag for a moment.
const SIGHTINGS: u32 = 2;

/// Records of orders that the slice does not have, asked for at once.
const STRANGERS: usize = 10_000;

/// What Kafka says of the orders of a slice, beside what each of them notes.
pub struct Announced {
    /// Next offsets of the group.
    committed: Offsets,
    /// Events, by partition and offset.
    dead_letters: HashSet<(i32, i64)>,
    /// Since when the topics have everything; only asked if something is not there.
    events_since: Option<Timestamp>,
    notifications_since: Option<Timestamp>,
    /// What is older, retention may have taken.
    events_kept: Timestamp,
    notifications_kept: Timestamp,
    /// Partitions whose committed offset is beyond their end: the topic was made anew, and consumers stop.
    pub lost: BTreeSet<i32>,
    pub unknown_events: Unknown,
    pub unknown_notifications: Unknown,
}

impl Announced {
    pub async fn look(
        kafka: &Kafka,
        slice: &mut Slice,
        shards: &mut [Session],
        map: &ShardMap,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let mut announced = Self {
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
        announced.unknown_events = search.run(kafka.orders(), slice, |order| &mut order.events, published).await?;
        if slice.orders.values().any(|order| published(order) && order.events.is_empty()) {
            announced.events_since = block_in_place(|| kafka.orders().intact_since())?;
        }

        // After the events were read, and before the notifications are: an event below has its notification by then.
        announced.ask_committed(kafka.orders())?;
        let passed = |order: &Accepted| order.events.iter().any(|event| announced.has_passed(event));
        announced.unknown_notifications =
            search.run(kafka.notifications(), slice, |order| &mut order.notifications, passed).await?;

        let unnotified = slice.orders.values().filter(|order| order.notifications.is_empty());
        let passed = unnotified.flat_map(|order| &order.events).filter(|event| announced.has_passed(event));
        let unnotified: HashSet<_> = passed.map(|event| (event.partition, event.offset)).collect();
        if !unnotified.is_empty() {
            announced.dead_letters = block_in_place(|| dead_letters(kafka, slice.from, &unnotified))?;
            announced.notifications_since = block_in_place(|| kafka.notifications().intact_since())?;
        }
        Ok(announced)
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

    fn ask_committed(&mut self, orders: Log<'_>) -> anyhow::Result<()> {
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

    /// Whether the group is done with an event.
    fn has_passed(&self, event: &Place) -> bool {
        self.committed.get(&event.partition).is_some_and(|next| event.offset < *next)
    }
}

fn is_since(since: Option<Timestamp>, moment: Timestamp) -> bool {
    since.is_some_and(|since| moment >= since)
}

/// What it takes to look for a slice's orders in a topic.
struct Search<'run> {
    shards: &'run mut [Session],
    map: &'run ShardMap,
    progress: &'run Progress,
}

impl Search<'_> {
    /// Notes where the orders are in the topic. Those that are `expected` are looked for to its end; without them, or when
    /// they are found, it is enough to have passed the slice.
    async fn run(
        &mut self,
        log: Log<'_>,
        slice: &mut Slice,
        found: fn(&mut Accepted) -> &mut Vec<Place>,
        expected: impl Fn(&Accepted) -> bool,
    ) -> anyhow::Result<Unknown> {
        let mut sighting = 1;
        loop {
            let (awaited, unknown) = self.read(log, slice, found, &expected).await?;
            if awaited == 0 || sighting == SIGHTINGS {
                return Ok(unknown);
            }
            sighting += 1;
            slice.orders.values_mut().for_each(|order| found(order).clear());
        }
    }

    /// Also tells how many that are expected are not there.
    async fn read(
        &mut self,
        log: Log<'_>,
        slice: &mut Slice,
        found: fn(&mut Accepted) -> &mut Vec<Place>,
        expected: impl Fn(&Accepted) -> bool,
    ) -> anyhow::Result<(usize, Unknown)> {
        let mut awaited = slice.orders.values().filter(|order| expected(order)).count();
        let (mut unknown, mut strangers, mut records) = (Unknown::default(), Vec::new(), 0);
        let mut reading = block_in_place(|| log.read(slice.from))?;
        while !reading.is_done() && (awaited > 0 || slice.to.is_none_or(|to| !reading.has_passed(to))) {
            let mentions = block_in_place(|| reading.next(|record| Some(Mention::of(record))))?;
            records += mentions.len();
            for mention in mentions.into_iter().flatten() {
                if let Some(order) = slice.orders.get_mut(&mention.order_id) {
                    if found(order).is_empty() && expected(order) {
                        awaited -= 1;
                    }
                    found(order).push(mention.place);
                } else if slice.contains(mention.accepted_at) {
                    strangers.push(mention);
                }
            }
            if strangers.len() > STRANGERS {
                self.ask_for(&mut strangers, &mut unknown).await?;
            }
            self.progress.tell(|| format!("{records} records of {}", log.topic));
        }
        drop(reading);
        self.ask_for(&mut strangers, &mut unknown).await?;
        Ok((awaited, unknown))
    }

    /// Which of the strangers are orders by now: one may have been stored after its shard's snapshot. A record in Kafka is
    /// younger than its order, so what no shard has now, none had.
    async fn ask_for(&mut self, strangers: &mut Vec<Mention>, unknown: &mut Unknown) -> anyhow::Result<()> {
        let ids: Vec<OrderId> = strangers.iter().map(|mention| mention.order_id).collect();
        let mut known = HashSet::new();
        for shard in self.shards.iter_mut().filter(|_| !ids.is_empty()) {
            known.extend(shard.known(&ids).await?);
        }
        for mention in strangers.drain(..).filter(|mention| !known.contains(&mention.order_id)) {
            let shard = self.map.shard_of(&UserId::from_stored(mention.user_id)).index.get();
            *unknown.counts.entry(shard).or_default() += 1;
            if unknown.first.len() < EXAMPLES {
                unknown.first.push(mention.order_id);
            }
        }
        Ok(())
    }
}

/// An order in an event or a notification.
struct Mention {
    order_id: OrderId,
    user_id: String,
    accepted_at: Timestamp,
    place: Place,
}

impl Mention {
    /// `None` of what is neither; consumers make a dead letter of it.
    fn of(record: &BorrowedMessage<'_>) -> Option<Self> {
        #[derive(Deserialize)]
        struct Value<'value> {
            order_id: OrderId,
            #[serde(borrow)]
            user_id: Cow<'value, str>,
            /// The event's name, and the notification's.
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

/// Those of `events` that are dead letters. Those of earlier slices are not read again.
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
