//! Markers: records in the topic of dead letters that say how far a group has replayed a partition. A replay writes them in
//! its transaction, beside the offsets that it commits. A broker forgets the offsets of a group without members after
//! `offsets.retention.minutes`; a marker stays as long as the letters before it, because a log is only cut at its start.

use orderflow_service::kafka::header;
use rdkafka::{
    Message,
    message::{Header, OwnedHeaders},
};

use crate::letter::name;

/// Makes the headers of a marker: `group` has replayed every letter of the partition before this offset.
pub fn headers(group: &str, before: i64) -> OwnedHeaders {
    OwnedHeaders::new()
        .insert(Header { key: name::REPLAYED_BEFORE, value: Some(before.to_string().as_str()) })
        .insert(Header { key: name::GROUP, value: Some(group) })
}

/// Tells a marker from a letter. An event may bring any headers of its own, but a letter always has one that names its
/// source topic.
pub fn is_marker<M: Message>(record: &M) -> bool {
    let has = |name| header::last(record.headers(), name).is_some();
    has(name::REPLAYED_BEFORE) && !has(name::TOPIC)
}

/// Reads the offset of a marker of this group, or `None` if the record is none.
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
    fn a_marker_is_read_by_its_group_alone() {
        let marker = record(headers("g", 42));
        assert_eq!((read(&marker, "g"), read(&marker, "h")), (Some(42), None));
        assert!(is_marker(&marker));
    }

    #[test]
    fn an_event_with_the_headers_of_a_marker_becomes_a_letter_all_the_same() {
        let letter = DeadLetter::new(&record(headers("g", 42)), "no", "g", Timestamp::EPOCH, 10_000).headers;
        assert!(!is_marker(&record(letter.clone())));
        assert_eq!(read(&record(letter), "g"), None);
    }
}
