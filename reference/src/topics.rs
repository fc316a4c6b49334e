//! Renders the topics from the plan by which they are created.

use crate::table::{Table, code, prose};

/// A topic as it is created.
pub struct Topic {
    pub name: String,
    pub partitions: i32,
    /// Name, value, and whether a larger value will do as well.
    pub settings: Vec<(String, String, bool)>,
}

/// Facts about a topic that its plan lacks: the part of its name after the events' topic, keys, partitions and records.
struct About {
    suffix: &'static str,
    key: &'static str,
    partitions: &'static str,
    records: &'static str,
}

const ABOUT: [About; 4] = [
    About {
        suffix: "",
        key: "user id",
        partitions: "`KAFKA_PARTITIONS`, fixed at creation",
        records: "one event per order, in the order of each user's orders",
    },
    About {
        suffix: ".notifications",
        key: "user id",
        partitions: "at least as many as the events' topic",
        records: "one notification per event, in the partition number of the event",
    },
    About {
        suffix: ".dlq",
        key: "the key of the record that could not be read",
        partitions: "one",
        records: "dead letters: records that the consumer could not read, with the reason in headers",
    },
    About {
        suffix: ".relay",
        key: "shard name; in the last partition `owner:OWNER` and `created:TOPIC`",
        partitions: "one per shard, and a last one for the owner",
        records: "the progress record of each shard's relay, and the owner of the topics",
    },
];

/// Returns the section of the topics, of which `events` is the one that the others are named after.
pub fn section(events: &str, topics: &[Topic]) -> String {
    let rows = topics.iter().map(|topic| {
        let about =
            topic.name.strip_prefix(events).and_then(|suffix| ABOUT.iter().find(|about| about.suffix == suffix));
        let About { key, partitions, records, .. } = about.unwrap_or_else(|| panic!("{} is not described", topic.name));
        [code(&topic.name), format!("{} ({partitions})", topic.partitions), prose(key), prose(records)]
    });
    let shapes = Table::new(["topic", "partitions", "key", "records"]).rows(rows).render();
    let rows = topics.iter().flat_map(|topic| {
        topic.settings.iter().map(|(name, value, more)| {
            let bound = if *more { "at least " } else { "" };
            [code(&topic.name), code(name), format!("{bound}{}", code(value))]
        })
    });
    let settings = Table::new(["topic", "setting", "value"]).rows(rows).render();
    format!(
        "## Topics\n\nAll names follow from `KAFKA_TOPIC`, here {}; the numbers are those of the defaults with two shards. \
         `orderflow-provision` and the operator create missing topics. They never change an existing one: they report what \
         differs.\n\n{shapes}\nA topic is created with these settings, and its replication factor is \
         `KAFKA_REPLICATION_FACTOR` or the brokers' default:\n\n{settings}",
        code(&events)
    )
}
