//! The names and attributes of spans about Kafka. OpenTelemetry's conventions for messaging are still in development, so
//! they are used here alone, as of version 1.38. `OTEL_SEMCONV_STABILITY_OPT_IN=messaging/dup` adds the names of version
//! 1.24, which many dashboards still use; `messaging` has no effect until the conventions are stable.

use std::sync::LazyLock;

use opentelemetry::KeyValue;

/// The schema of all attributes.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.38.0";

/// The operation of a span on records of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes the record of one order.
    Publish,
    /// Sends a batch in a transaction.
    Send,
    /// Turns one record into another.
    Process,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Send => "send",
            Self::Process => "process",
        }
    }

    /// Returns the type that the conventions give the operation: with a batch, its records are created one by one and
    /// sent together.
    fn kind(self) -> &'static str {
        match self {
            Self::Publish => "create",
            Self::Send => "send",
            Self::Process => "process",
        }
    }
}

static HAS_OLD_NAMES: LazyLock<bool> = LazyLock::new(|| {
    let chosen = std::env::var("OTEL_SEMCONV_STABILITY_OPT_IN").unwrap_or_default();
    chosen.split(',').any(|choice| choice.trim() == "messaging/dup")
});

/// Returns the name of a span.
pub fn name(operation: Operation, topic: &str) -> String {
    format!("{} {topic}", operation.name())
}

/// Returns the attributes of every span about a topic.
pub fn of_topic(operation: Operation, topic: &str) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("messaging.system", "kafka"),
        KeyValue::new("messaging.operation.name", operation.name()),
        KeyValue::new("messaging.operation.type", operation.kind()),
        KeyValue::new("messaging.destination.name", topic.to_owned()),
    ];
    if *HAS_OLD_NAMES {
        let old = if operation == Operation::Process { "process" } else { "publish" };
        attributes.push(KeyValue::new("messaging.operation", old));
    }
    attributes
}

/// Returns the number of records in a batch.
pub fn batch(count: usize) -> KeyValue {
    KeyValue::new("messaging.batch.message_count", count as i64)
}

/// Returns the group that reads.
pub fn group(name: &str) -> Vec<KeyValue> {
    let old = HAS_OLD_NAMES.then(|| KeyValue::new("messaging.kafka.consumer.group", name.to_owned()));
    [KeyValue::new("messaging.consumer.group.name", name.to_owned())].into_iter().chain(old).collect()
}

/// Returns the place of a record.
pub fn place(partition: i32, offset: Option<i64>) -> Vec<KeyValue> {
    let mut attributes = vec![KeyValue::new("messaging.destination.partition.id", partition.to_string())];
    attributes.extend(offset.map(|offset| KeyValue::new("messaging.kafka.offset", offset)));
    if *HAS_OLD_NAMES {
        attributes.push(KeyValue::new("messaging.kafka.destination.partition", i64::from(partition)));
        attributes.extend(offset.map(|offset| KeyValue::new("messaging.kafka.message.offset", offset)));
    }
    attributes
}
