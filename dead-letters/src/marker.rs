//! Markers: records in the dead-letter topic with the offset up to which a group has replayed a partition. A replay
//! writes them in the transaction that commits its offsets. A broker deletes the offsets of a group without members
//! after `offsets.retention.minutes`. A marker stays as long as the letters before it, because retention deletes the
//! oldest records first.

use orderflow_service::kafka::header;
use rdkafka::{
    Message,
    message::{Header, OwnedHeaders},
};

use crate::letter::name;

/// Makes the headers of a marker: `group` has replayed every letter of the partition before the offset `before`.
pub fn headers(group: &str, before: i64) -> OwnedHeaders {
    OwnedHeaders::new()
        .insert(Header { key: name::REPLAYED_BEFORE, value: Some(before.to_string().as_str()) })
        .insert(Header { key: name::GROUP, value: Some(group) })
}

/// Returns true if a record is a marker rather than a letter. An event may have any headers, but a letter always has
/// one that names its source topic.
pub fn is_marker<M: Message>(record: &M) -> bool {
    let has = |name| header::last(record.headers(), name).is_some();
    has(name::REPLAYED_BEFORE) && !has(name::TOPIC)
}

/// Reads the offset from a marker of this group. Returns `None` for any other record.
pub fn read<M: Message>(record: &M, group: &str) -> Option<i64> {
    let text = |name| header::last_text(record.headers(), name);
    let is_of_group = is_marker(record) && text(name::GROUP) == Some(group);
    is_of_group.then(|| text(name::REPLAYED_BEFORE)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use orderflow_core::Timestamp;
    use rdkafka::message::OwnedMessage;

    use super::*;
    use crate::DeadLetter;

    fn record(headers: OwnedHeaders) -> OwnedMessage {
        OwnedMessage::new(None, None, "orders".into(), rdkafka::Timestamp::NotAvailable, 0, 7, Some(headers))
    }

    #[test]
    fn a_marker_counts_only_for_its_group() {
        let marker = record(headers("g", 42));
        assert_eq!((read(&marker, "g"), read(&marker, "h")), (Some(42), None));
        assert!(is_marker(&marker));
    }

    #[test]
    fn an_event_with_the_headers_of_a_marker_becomes_a_letter() {
        let letter = DeadLetter::new(&record(headers("g", 42)), "no", "g", Timestamp::EPOCH, 10_000).headers;
        assert!(!is_marker(&record(letter.clone())));
        assert_eq!(read(&record(letter), "g"), None);
    }
}
