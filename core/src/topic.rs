//! The four topics of one OrderFlow; their names all follow from the one that is configured.

/// Names of the topics, made from the name of the events' topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Order events, key = user id. What the demo calls `KAFKA_TOPIC`.
    pub orders: String,
    /// One notification per event, in the partition number its event came from.
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
