//! The state of an order's event and notification, from the feed's memory, else from the shard's queue tables, else
//! from the topics, which are read from the time of the order on, within bounds of records and time. Few searches run
//! at once.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    feed::Feed,
    kafka_query::{Queries, Query},
    quota::{Held, Quota},
    shard::Queued,
};
use orderflow_core::{Notification, Order, OrderCreated, OrderId, Timestamp, Topics, event, json};
use orderflow_service::kafka::{self, header};
use rdkafka::{ClientConfig, Message, message::BorrowedMessage};

/// Concurrent searches; each may hold a Kafka client and read megabytes.
const AT_ONCE: usize = 4;

/// Longest search in Kafka.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Longest wait for the trace of an order, which is shown beside its trail.
const TRACE_TIMEOUT: Duration = Duration::from_millis(500);

/// Most records that are read of each of the two topics. An event is usually notified within a tenth of a second, in
/// which far fewer other events are.
const MOST_RECORDS: usize = 10_000;

/// Largest difference between the clocks of two synchronized machines, in milliseconds.
const SKEW: i64 = 1000;

pub struct Trails {
    feed: Feed,
    topics: Topics,
    config: ClientConfig,
    places: Quota,
    /// Idle clients, at most [`AT_ONCE`].
    idle: Mutex<Vec<Queries<()>>>,
}

/// The state of an order's event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventState {
    /// The event waits in the outbox.
    Waiting,
    /// Kafka refused the event for good.
    Refused(Timestamp),
    Published(Published),
    Notified(Published, Timestamp),
    /// The state is not known; the text describes the searched records.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub at: Timestamp,
    pub partition: i32,
    pub offset: i64,
    /// The reason, if the state of its notification is not known.
    pub note: Option<String>,
}

impl Trails {
    pub fn new(feed: Feed, settings: &kafka::Settings, topics: Topics, share: u8) -> Self {
        let mut config = settings.consumer("orderflow.trail");
        // Small fetches read all partitions concurrently, not thousands of records of the first one.
        config.set("fetch.message.max.bytes", "65536");
        Self { feed, topics, config, places: Quota::new(AT_ONCE, share), idle: Mutex::default() }
    }

    /// Reserves a place for one search. `None` if all are taken, or the client's address has its share.
    pub fn begin(&self, client: Option<IpAddr>) -> Option<Held> {
        self.places.try_take(1, client)
    }

    /// Returns the `traceparent` that a published event carries. It is read from the event's place in the topic.
    pub async fn traceparent(&self, published: &Published) -> Option<String> {
        let (topic, range) = (self.topics.orders.clone(), (published.offset, published.offset + 1));
        let ranges = BTreeMap::from([(published.partition, range)]);
        let find = move |query: &mut Query<'_, ()>| {
            let mut found = None;
            query.read(&topic, &ranges, |record| {
                found = header::last_text(record.headers(), event::header::TRACEPARENT).map(str::to_owned);
                false
            })?;
            Ok(found)
        };
        self.query(TRACE_TIMEOUT, find).await.ok().flatten()
    }

    /// Returns the state of an order's event. `queued`: its state in the queue tables, read before.
    pub async fn follow(&self, order: &Order, queued: Option<Queued>) -> EventState {
        if let Some(notification) = self.feed.notification(order.id) {
            return notified(&notification);
        }
        match queued {
            Some(Queued { refused_since: Some(since), .. }) => return EventState::Refused(since.into()),
            Some(Queued { in_outbox: true, .. }) => return EventState::Waiting,
            _ => {}
        }
        let (topics, id, accepted_at) = (self.topics.clone(), order.id, order.created_at);
        let found = self.query(TIMEOUT, move |query| find_event(query, &topics, id, accepted_at)).await;
        found.unwrap_or_else(|reason| EventState::Unknown(format!("cannot search Kafka: {reason}")))
    }
}

impl Trails {
    /// Runs a query on an idle client, or a new one.
    async fn query<T: Send + 'static>(
        &self,
        timeout: Duration,
        query: impl FnOnce(&mut Query<'_, ()>) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let queries = idle().pop().unwrap_or_else(|| Queries::new(self.config.clone()));
        let found = queries.run(timeout, query).await;
        idle().push(queries);
        found
    }
}

fn notified(notification: &Notification) -> EventState {
    let published = Published {
        at: notification.published_at,
        partition: notification.partition,
        offset: notification.offset,
        note: None,
    };
    EventState::Notified(published, notification.notified_at)
}

/// Searches the topics for an order's notification, else for its event.
fn find_event(
    query: &mut Query<'_, ()>,
    topics: &Topics,
    id: OrderId,
    accepted_at: Timestamp,
) -> Result<EventState, String> {
    let text = id.to_string();
    let contains_id = |record: &BorrowedMessage<'_>| {
        record.payload_view::<str>().and_then(Result::ok).is_some_and(|value| value.contains(&text))
    };
    let notification = search(query, &topics.notifications, accepted_at, |record| {
        let value = contains_id(record).then(|| record.payload()).flatten()?;
        json::from_object::<Notification>(value).ok().filter(|notification| notification.order_id == id)
    })?;
    if let Some(notification) = notification.found {
        return Ok(notified(&notification));
    }
    // Only a topic that was read to its end is known not to have the notification.
    let note = (!notification.is_complete).then(|| notification.describe(&topics.notifications, accepted_at));
    let event = search(query, &topics.orders, accepted_at, |record| {
        let value = contains_id(record).then(|| record.payload());
        OrderCreated::decode(value?, None).ok().filter(|event| event.order_id == id)?;
        let milliseconds = record.timestamp().to_millis()?;
        let at = Timestamp::from_unix_microseconds(milliseconds.saturating_mul(1000))?;
        Some(Published { at, partition: record.partition(), offset: record.offset(), note: None })
    })?;
    let searched = event.describe(&topics.orders, accepted_at);
    Ok(match event.found {
        Some(published) => EventState::Published(Published { note, ..published }),
        None => EventState::Unknown(note.map_or(searched.clone(), |note| format!("{note}; {searched}"))),
    })
}

struct Search<T> {
    found: Option<T>,
    records: usize,
    /// True if the topic was read to its end.
    is_complete: bool,
}

impl<T> Search<T> {
    /// Describes a search without a result.
    fn describe(&self, topic: &str, accepted_at: Timestamp) -> String {
        let records = self.records;
        let how = if self.is_complete { "all" } else { "the first" };
        format!("not found in {how} {records} records of {topic} since {accepted_at}")
    }
}

fn search<T>(
    query: &mut Query<'_, ()>,
    topic: &str,
    accepted_at: Timestamp,
    find: impl Fn(&BorrowedMessage<'_>) -> Option<T>,
) -> Result<Search<T>, String> {
    let count = query.partitions(topic)?;
    let starts = query.offsets_since(topic, count, accepted_at.unix_microseconds() / 1000 - SKEW)?;
    let mut extents = BTreeMap::new();
    for (partition, start) in starts {
        extents.insert(partition, (start, query.extent(topic, partition)?.1));
    }
    let (mut found, mut records) = (None, 0);
    let is_complete = query.read(topic, &extents, |record| {
        records += 1;
        found = find(record);
        found.is_none() && records < MOST_RECORDS
    })?;
    Ok(Search { found, records, is_complete })
}
