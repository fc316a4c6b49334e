//! A frame: the notifications of one cut, all of them counted and the latest shown, rendered once for all streams
//! that will ever send it. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use axum::body::Bytes;
use orderflow_core::{Notification, OrderId, ShardMap, Timestamp, UserId};
use serde::Serialize;
use uuid::Uuid;

/// Notifications that a frame shows, and that a new stream begins with. A page shows no more at a time.
pub const SHOWN: usize = 20;

/// Largest notification that is shown, so that no frame is large; ours have at most 3 KiB. A larger one is only
/// counted.
const LARGEST_SHOWN: usize = 8 * 1024;

/// Upper bounds of the classes of latency, in milliseconds: three to a decade, which is as fine as a chart of it needs.
const BOUNDS_MS: [i64; 28] = [
    1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000, 10_000,
    15_000, 20_000, 30_000, 60_000,
];

/// The bound that stands for the class above the last one.
const ABOVE: i64 = -1;

/// A notification to show: its text as on the topic, on one line.
#[derive(Clone, Debug)]
pub struct Shown {
    pub order_id: OrderId,
    notified_at: Timestamp,
    text: Arc<str>,
}

/// The latest [`SHOWN`] of any number of notifications, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Latest(VecDeque<Shown>);

/// A histogram of how long notifications took: one class for each bound, and one above them.
#[derive(Clone, Debug, Default)]
pub struct Latency([u64; BOUNDS_MS.len() + 1]);

/// The notifications of the next frame.
#[derive(Debug)]
pub struct Pending {
    count: u64,
    latest: Latest,
    /// Count and latency of the notifications, by the Unix second of notification.
    seconds: BTreeMap<i64, (u64, Latency)>,
    /// Counts by shard, in the order of the map.
    shards: Vec<u64>,
}

/// A frame, as it is sent.
#[derive(Debug)]
pub struct Frame {
    pub count: u64,
    pub text: Bytes,
    /// Places in the text of the notifications of orders.
    shown: Vec<(OrderId, Range<usize>)>,
}

impl Shown {
    /// Prepares a notification. `None` if it is too large to be shown.
    pub fn new(notification: &Notification, text: &str) -> Option<Self> {
        // A line break between two tokens of JSON, which ours do not have, would end the event's line.
        let text = if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], " ").into() } else { text.into() };
        let shown = Self { order_id: notification.order_id, notified_at: notification.notified_at, text };
        (shown.text.len() <= LARGEST_SHOWN).then_some(shown)
    }
}

impl Latest {
    pub fn push(&mut self, shown: Shown) {
        // Partitions are read one after the other, and their notifications come nearly in order.
        let place =
            self.0.iter().rposition(|other| other.notified_at <= shown.notified_at).map_or(0, |before| before + 1);
        self.0.insert(place, shown);
        if self.0.len() > SHOWN {
            self.0.pop_front();
        }
    }

    pub fn extend(&mut self, other: Self) {
        other.0.into_iter().for_each(|shown| self.push(shown));
    }

    pub fn find(&self, order_id: OrderId) -> Option<&str> {
        self.0.iter().find(|shown| shown.order_id == order_id).map(|shown| &*shown.text)
    }

    /// Renders the `recent` event.
    pub fn render(&self) -> Bytes {
        let mut text = b"event: recent\ndata: {\"notifications\":[".to_vec();
        self.write(&mut text);
        text.extend(b"]}\n\n");
        text.into()
    }

    /// Appends the notifications, and returns the place of each.
    fn write(&self, text: &mut Vec<u8>) -> Vec<(OrderId, Range<usize>)> {
        let mut places = Vec::with_capacity(self.0.len());
        for shown in &self.0 {
            if !places.is_empty() {
                text.push(b',');
            }
            let start = text.len();
            text.extend(shown.text.as_bytes());
            places.push((shown.order_id, start..text.len()));
        }
        places
    }
}

impl Pending {
    pub fn new(map: &ShardMap) -> Self {
        Self { count: 0, latest: Latest::default(), seconds: BTreeMap::new(), shards: vec![0; map.len()] }
    }

    pub fn add(&mut self, notification: &Notification, text: &str, map: &ShardMap) {
        let user = UserId::from_stored(notification.user_id.clone());
        self.count += 1;
        self.shards[map.shard_of(&user).index.get()] += 1;
        let took = notification.notified_at.unix_microseconds() - notification.accepted_at.unix_microseconds();
        let second = notification.notified_at.unix_microseconds().div_euclid(1_000_000);
        let (count, latency) = self.seconds.entry(second).or_default();
        *count += 1;
        latency.0[BOUNDS_MS.partition_point(|bound| bound * 1000 < took)] += 1;
        if let Some(shown) = Shown::new(notification, text) {
            self.latest.push(shown);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn latest(&self) -> &Latest {
        &self.latest
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the Unix seconds of notification, each with the count and the latency of its notifications.
    pub fn seconds(&self) -> impl Iterator<Item = (i64, u64, &Latency)> {
        self.seconds.iter().map(|(second, (count, latency))| (*second, *count, latency))
    }

    /// Renders the frame with this number, with which `total` notifications were sent.
    pub fn render(&self, map: &ShardMap, epoch: Uuid, number: u64, total: u64) -> Frame {
        let mut text = format!(
            "id: {epoch}:{number}\nevent: frame\ndata: {{\"count\":{},\"total\":{total},\"notifications\":[",
            self.count
        )
        .into_bytes();
        let shown = self.latest.write(&mut text);
        let mut latency = Latency::default();
        self.seconds.values().for_each(|(_, of_second)| latency.add(of_second));
        let shards = map.iter().zip(&self.shards).map(|(shard, count)| (shard.name.as_str(), *count));
        text.extend(b"],\"latency\":");
        text.extend(json(&latency.classes()));
        text.extend(b",\"shards\":");
        text.extend(json(&shards.collect::<BTreeMap<_, _>>()));
        text.extend(b"}\n\n");
        Frame { count: self.count, text: text.into(), shown }
    }
}

impl Latency {
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }

    /// Returns the classes that are not empty: the upper bound in milliseconds, and the count.
    pub fn classes(&self) -> Vec<(i64, u64)> {
        let classes = BOUNDS_MS.into_iter().chain([ABOVE]).zip(self.0);
        classes.filter(|(_, count)| *count > 0).collect()
    }
}

impl Frame {
    /// Creates an event that counts nothing and takes the place of a frame.
    pub fn bare(text: String) -> Self {
        Self { count: 0, text: text.into(), shown: Vec::new() }
    }

    pub fn find(&self, order_id: OrderId) -> Option<&str> {
        let (_, place) = self.shown.iter().find(|(shown, _)| *shown == order_id)?;
        std::str::from_utf8(&self.text[place.clone()]).ok()
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers and names are JSON")
}

#[cfg(test)]
pub mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub fn map() -> ShardMap {
        "shard1=A-M,shard2=N-Z".parse().unwrap()
    }

    pub fn notification(number: u128, took: i64) -> (Notification, String) {
        let moment = |microseconds| Timestamp::from_unix_microseconds(microseconds).unwrap();
        let accepted = 1_700_000_000_000_000 + number as i64;
        let notification = Notification {
            event_id: Uuid::from_u128(number),
            order_id: Uuid::from_u128(number),
            user_id: "alice".to_owned(),
            message: format!("Dear alice {number}"),
            accepted_at: moment(accepted),
            published_at: moment(accepted),
            notified_at: moment(accepted + took),
            partition: 0,
            offset: number as i64,
        };
        let text = serde_json::to_string(&notification).unwrap();
        (notification, text)
    }

    pub fn pending(numbers: std::ops::Range<u128>) -> Pending {
        let mut pending = Pending::new(&map());
        for number in numbers {
            let (notification, text) = notification(number, 0);
            pending.add(&notification, &text, &map());
        }
        pending
    }

    fn value(frame: &Frame) -> Value {
        let text = std::str::from_utf8(&frame.text).unwrap();
        let data = text.strip_suffix("\n\n").unwrap().lines().find_map(|line| line.strip_prefix("data: "));
        serde_json::from_str(data.unwrap()).unwrap()
    }

    fn numbers(value: &Value) -> Vec<i64> {
        value["notifications"].as_array().unwrap().iter().map(|shown| shown["offset"].as_i64().unwrap()).collect()
    }

    #[test]
    fn a_frame_counts_all_and_shows_the_latest() {
        let pending = pending(0..37);
        let frame = pending.render(&map(), Uuid::nil(), 3, 100);
        assert!(frame.text.starts_with(b"id: 00000000-0000-0000-0000-000000000000:3\nevent: frame\ndata: {"));
        let value = value(&frame);
        assert_eq!((&value["count"], &value["total"]), (&json!(37), &json!(100)));
        assert_eq!(value["shards"], json!({"shard1": 37, "shard2": 0}));
        assert_eq!(value["latency"], json!([[1, 37]]));
        assert_eq!(numbers(&value), (17..37).collect::<Vec<_>>());
        assert_eq!(value["notifications"][0].to_string(), {
            let (_, text) = notification(17, 0);
            serde_json::from_str::<Value>(&text).unwrap().to_string()
        });
    }

    #[test]
    fn a_notification_that_a_frame_shows_is_found_in_it() {
        let frame = pending(0..37).render(&map(), Uuid::nil(), 1, 37);
        assert_eq!(frame.find(Uuid::from_u128(20)), Some(notification(20, 0).1.as_str()));
        assert_eq!(frame.find(Uuid::from_u128(3)), None);
    }

    #[test]
    fn a_latency_belongs_to_the_first_bound_that_it_does_not_exceed() {
        let mut pending = Pending::new(&map());
        for took in [-5, 0, 1000, 1001, 60_000_000, 60_000_001] {
            let (notification, text) = notification(1, took);
            pending.add(&notification, &text, &map());
        }
        let value = value(&pending.render(&map(), Uuid::nil(), 1, 6));
        assert_eq!(value["latency"], json!([[1, 3], [2, 1], [60_000, 1], [-1, 1]]));
    }

    #[test]
    fn notifications_are_shown_in_the_order_of_their_time_whatever_partition_is_read_first() {
        let mut latest = Latest::default();
        for number in [3, 1, 4, 2] {
            let (notification, text) = notification(number, 0);
            latest.push(Shown::new(&notification, &text).unwrap());
        }
        let text = latest.render();
        let data = std::str::from_utf8(&text).unwrap().strip_prefix("event: recent\ndata: ").unwrap();
        assert_eq!(numbers(&serde_json::from_str(data).unwrap()), [1, 2, 3, 4]);
    }

    #[test]
    fn neither_a_line_break_nor_a_large_text_harms_the_stream() {
        let (notification, text) = notification(1, 0);
        let spread = text.replace(',', ",\r\n");
        assert!(!Shown::new(&notification, &spread).unwrap().text.contains(['\r', '\n']));
        assert!(Shown::new(&notification, &text.replace("Dear", &"x".repeat(LARGEST_SHOWN))).is_none());
    }
}
