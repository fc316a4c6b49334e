//! The four topics of one OrderFlow. All names derive from the configured one.

/// Names of the topics, derived from the name of the events' topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Order events, key = user id. The demo's `KAFKA_TOPIC`.
    pub orders: String,
    /// Notifications, one per event, in the partition number of the event.
    pub notifications: String,
    /// Dead letters: events that no consumer could read.
    pub dead_letters: String,
    /// Progress records of the relays, compacted, partition = shard index.
    pub relay: String,
}

impl Topics {
    pub fn named(orders: &str) -> Self {
        Self {
            orders: orders.to_owned(),
            notifications: format!("{orders}.notifications"),
            dead_letters: format!("{orders}.dlq"),
            relay: format!("{orders}.relay"),
        }
    }
}
