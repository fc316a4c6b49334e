//! How far an order's event and notification are: as the feed remembers it, else as the shard's queue says, else as the topics
//! do, which are read from the time of the order on, not far and not for long. Few look-ups at once.

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
use orderflow_core::{Notification, Order, OrderCreated, OrderId, Timestamp, Topics, json};
use orderflow_service::kafka;
use rdkafka::{ClientConfig, Message, message::BorrowedMessage};

/// Look-ups at once; each may hold a client of Kafka and read megabytes.
const AT_ONCE: usize = 4;

/// Longest look at Kafka.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Records that are read of each of the two topics. An event is usually notified within a tenth of a second, in which far
/// fewer of others are.
const MOST_RECORDS: usize = 10_000;

/// How far the clocks of two machines that keep time may be apart, in milliseconds.
const SKEW: i64 = 1000;

pub struct Trails {
    feed: Feed,
    topics: Topics,
    config: ClientConfig,
    places: Quota,
    /// Clients that nobody uses right now, at most [`AT_ONCE`].
    idle: Mutex<Vec<Queries<()>>>,
}

/// What has become of an order's event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It waits in the outbox.
    Waiting,
    /// Kafka refused it for good.
    Dead(Timestamp),
    Published(Published),
    Notified(Published, Timestamp),
    /// With how far was looked.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub at: Timestamp,
    pub partition: i32,
    pub offset: i64,
    /// Why it is not known whether it was notified.
    pub note: Option<String>,
}

impl Trails {
    pub fn new(feed: Feed, settings: &kafka::Settings, topics: Topics, share: u8) -> Self {
        let mut config = settings.consumer("orderflow.trail");
        // All partitions side by side, rather than the first thousands of one.
        config.set("fetch.message.max.bytes", "65536");
        Self { feed, topics, config, places: Quota::new(AT_ONCE, share), idle: Mutex::default() }
    }

    /// A place for one look-up; `None` if all are taken, or this client has its share.
    pub fn begin(&self, client: Option<IpAddr>) -> Option<Held> {
        self.places.try_take(1, client)
    }

    /// `queued`: what the order's shard said before.
    pub async fn follow(&self, order: &Order, queued: Option<Queued>) -> Announced {
        if let Some(notification) = self.feed.notification(order.id) {
            return notified(&notification);
        }
        match queued {
            Some(Queued { dead_since: Some(since), .. }) => return Announced::Dead(since.into()),
            Some(Queued { in_outbox: true, .. }) => return Announced::Waiting,
            _ => {}
        }
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let queries = idle().pop().unwrap_or_else(|| Queries::new(self.config.clone()));
        let (topics, id, accepted_at) = (self.topics.clone(), order.id, order.created_at);
        let found = queries.run(TIMEOUT, move |query| look(query, &topics, id, accepted_at)).await;
        idle().push(queries);
        found.unwrap_or_else(|reason| Announced::Unknown(format!("Kafka could not be asked: {reason}")))
    }
}

fn notified(notification: &Notification) -> Announced {
    let published = Published {
        at: notification.published_at,
        partition: notification.partition,
        offset: notification.offset,
        note: None,
    };
    Announced::Notified(published, notification.notified_at)
}

fn look(query: &mut Query<'_, ()>, topics: &Topics, id: OrderId, accepted_at: Timestamp) -> Result<Announced, String> {
    let text = id.to_string();
    let mentions = |record: &BorrowedMessage<'_>| {
        record.payload_view::<str>().and_then(Result::ok).is_some_and(|value| value.contains(&text))
    };
    let notification = search(query, &topics.notifications, accepted_at, |record| {
        let value = mentions(record).then(|| record.payload()).flatten()?;
        json::from_object::<Notification>(value).ok().filter(|notification| notification.order_id == id)
    })?;
    if let Some(notification) = notification.found {
        return Ok(notified(&notification));
    }
    // Only what was read to its end is known not to be there.
    let note = (!notification.is_complete).then(|| notification.told(&topics.notifications, accepted_at));
    let event = search(query, &topics.orders, accepted_at, |record| {
        let value = mentions(record).then(|| record.payload());
        OrderCreated::decode(value?, None).ok().filter(|event| event.order_id == id)?;
        let milliseconds = record.timestamp().to_millis()?;
        let at = Timestamp::from_unix_microseconds(milliseconds.saturating_mul(1000))?;
        Some(Published { at, partition: record.partition(), offset: record.offset(), note: None })
    })?;
    let told = event.told(&topics.orders, accepted_at);
    Ok(match event.found {
        Some(published) => Announced::Published(Published { note, ..published }),
        None => Announced::Unknown(note.map_or(told.clone(), |note| format!("{note}; {told}"))),
    })
}

struct Search<T> {
    found: Option<T>,
    records: usize,
    /// All there was at the time.
    is_complete: bool,
}

impl<T> Search<T> {
    fn told(&self, topic: &str, accepted_at: Timestamp) -> String {
        let records = self.records;
        let how = if self.is_complete { "all" } else { "the first" };
        format!("it is not among {how} {records} records of {topic} since {accepted_at}")
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
