//! The format of a dead letter: the original record, and headers with its source and the reason why it could not be
//! read. The consumer's pipeline writes dead letters; the `dlq` commands and the producer's API read and replay them.

use orderflow_core::Timestamp;
use orderflow_service::kafka::header;
use rdkafka::{
    Message,
    message::{Header, Headers, OwnedHeaders},
};

/// The largest dead letter, in bytes of key, value and headers. It fits into the 2 MiB that `orders.dlq` accepts, with
/// room for Kafka's framing.
pub const SIZE_LIMIT: usize = 2 * 1024 * 1024 - 4096;

/// Names of the headers that a dead letter has in addition to its own.
pub mod name {
    /// Prefix of all these names. A replay removes the headers that have it.
    pub const PREFIX: &str = "dlq.";
    pub use orderflow_core::event::source_header::{OFFSET, PARTITION, TOPIC};
    pub const REASON: &str = "dlq.reason";
    /// The consumer group that could not read the record.
    pub const GROUP: &str = "dlq.group";
    pub const FAILED_AT: &str = "dlq.failed_at";
    /// The missing parts of the record; present only if the whole record did not fit.
    pub const TRUNCATED: &str = "dlq.truncated";
    /// The offset before which all letters of the partition are replayed. Only a [marker](crate::marker) has this
    /// header.
    pub const REPLAYED_BEFORE: &str = "dlq.replayed_before";
}

/// A record for the dead-letter topic.
pub struct DeadLetter<'record> {
    pub key: Option<&'record [u8]>,
    pub value: Option<&'record [u8]>,
    pub headers: OwnedHeaders,
}

/// The content of a dead letter's headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Place of the original record, or `None` if another program wrote the letter.
    pub source: Option<Source>,
    pub reason: String,
    pub group: String,
    pub failed_at: String,
    /// The missing parts of the original record, if any.
    pub truncated: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

impl<'record> DeadLetter<'record> {
    /// Makes a dead letter with the key, value and headers of `record`. A record that was sent compressed can be larger
    /// than any record that Kafka accepts from us. What does not fit into `limit` bytes is left out, the end of the
    /// value first, and `dlq.truncated` lists it. The whole record stays in its own topic, until retention deletes it.
    pub fn new<M: Message>(record: &'record M, reason: &str, group: &str, failed_at: Timestamp, limit: usize) -> Self {
        let own = [
            (name::TOPIC, record.topic().to_owned()),
            (name::PARTITION, record.partition().to_string()),
            (name::OFFSET, record.offset().to_string()),
            (name::REASON, reason.to_owned()),
            (name::GROUP, group.to_owned()),
            (name::FAILED_AT, failed_at.to_string()),
        ];
        let mut missing = Vec::new();
        // 256 bytes are reserved for the header that lists the missing parts.
        let mut room = limit
            .saturating_sub(256 + own.iter().map(|(name, value)| size_of_header(name, value.len())).sum::<usize>());

        let key = record.key().filter(|key| key.len() <= room / 4);
        if let (Some(whole), None) = (record.key(), key) {
            missing.push(format!("the key of {} bytes", whole.len()));
        }
        room -= key.map_or(0, <[u8]>::len);

        let (mut headers, mut left_out) = (OwnedHeaders::new(), 0);
        for readable in header::all(record.headers()) {
            let size = readable.as_ref().map(|header| size_of_header(header.key, header.value.map_or(0, <[u8]>::len)));
            match (readable, size) {
                (Some(header), Some(size)) if size <= room / 2 => {
                    room -= size;
                    headers = headers.insert(header_of(header.key, header.value));
                }
                _ => left_out += 1,
            }
        }
        if left_out > 0 {
            missing.push(format!("{left_out} headers"));
        }

        let value = record.payload().map(|value| &value[..value.len().min(room)]);
        if let (Some(whole), Some(part)) = (record.payload(), value)
            && part.len() < whole.len()
        {
            missing.push(format!("all but the first {} of {} bytes of the value", part.len(), whole.len()));
        }

        for (name, value) in &own {
            headers = headers.insert(header_of(name, Some(value.as_bytes())));
        }
        if !missing.is_empty() {
            headers = headers.insert(header_of(name::TRUNCATED, Some(missing.join(", ").as_bytes())));
        }
        Self { key, value, headers }
    }
}

impl Description {
    pub fn read<M: Message>(letter: &M) -> Self {
        let text = |name| header::last_text(letter.headers(), name).map(str::to_owned);
        let source = || {
            Some(Source {
                topic: text(name::TOPIC)?,
                partition: text(name::PARTITION)?.parse().ok()?,
                offset: text(name::OFFSET)?.parse().ok()?,
            })
        };
        Self {
            source: source(),
            reason: text(name::REASON).unwrap_or_default(),
            group: text(name::GROUP).unwrap_or_default(),
            failed_at: text(name::FAILED_AT).unwrap_or_default(),
            truncated: text(name::TRUNCATED),
        }
    }
}

/// Returns the headers of the original record, or `None` if one of them cannot be written again.
pub fn original_headers<H: Headers>(headers: Option<&H>) -> Option<OwnedHeaders> {
    header::all(headers).try_fold(OwnedHeaders::new(), |original, readable| {
        let header = readable?;
        if header.key.starts_with(name::PREFIX) {
            return Some(original);
        }
        Some(original.insert(header_of(header.key, header.value)))
    })
}

fn header_of<'header>(key: &'header str, value: Option<&'header [u8]>) -> Header<'header, &'header [u8]> {
    Header { key, value }
}

/// Returns the size of a header in a record: name, value, and at most 10 bytes for their lengths.
fn size_of_header(name: &str, value: usize) -> usize {
    name.len() + value + 10
}

#[cfg(test)]
mod tests {
    use rdkafka::message::OwnedMessage;

    use super::*;

    fn record(value: Vec<u8>, headers: OwnedHeaders) -> OwnedMessage {
        let time = rdkafka::Timestamp::CreateTime(1);
        OwnedMessage::new(Some(value), Some(b"alice".to_vec()), "orders".into(), time, 3, 42, Some(headers))
    }

    /// Returns the letter as a consumer receives it.
    fn arrived(letter: DeadLetter<'_>) -> OwnedMessage {
        let time = rdkafka::Timestamp::CreateTime(2);
        let [key, value] = [letter.key, letter.value].map(|part| part.map(<[u8]>::to_vec));
        OwnedMessage::new(value, key, "orders.dlq".into(), time, 0, 7, Some(letter.headers))
    }

    fn size(letter: &OwnedMessage) -> usize {
        let headers = header::all(letter.headers()).flatten();
        let headers: usize =
            headers.map(|header| size_of_header(header.key, header.value.map_or(0, <[u8]>::len))).sum();
        letter.key().map_or(0, <[u8]>::len) + letter.payload().map_or(0, <[u8]>::len) + headers
    }

    #[test]
    fn a_dead_letter_has_the_whole_record_and_its_source() {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "event_id", value: Some("1") })
            .insert(Header { key: "empty", value: None::<&str> });
        let record = record(b"{".to_vec(), headers);
        let letter = arrived(DeadLetter::new(&record, "not JSON", "group", Timestamp::now(), SIZE_LIMIT));
        let description = Description::read(&letter);
        assert_eq!((letter.key(), letter.payload()), (record.key(), record.payload()));
        assert_eq!(description.source, Some(Source { topic: "orders".into(), partition: 3, offset: 42 }));
        assert_eq!((&*description.reason, &*description.group), ("not JSON", "group"));
        assert_eq!(description.truncated, None);

        let original = original_headers(letter.headers()).unwrap();
        let names: Vec<_> = original.iter().map(|header| (header.key.to_owned(), header.value.is_some())).collect();
        assert_eq!(names, [("event_id".to_owned(), true), ("empty".to_owned(), false)]);
    }

    #[test]
    fn a_letter_that_becomes_a_dead_letter_again_describes_the_second_time() {
        let first = record(b"{".to_vec(), OwnedHeaders::new().insert(Header { key: name::OFFSET, value: Some("1") }));
        let letter = arrived(DeadLetter::new(&first, "again", "group", Timestamp::now(), SIZE_LIMIT));
        assert_eq!(Description::read(&letter).source.unwrap().offset, 42);
        assert_eq!(original_headers(letter.headers()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_is_too_large_is_cut_to_fit_and_lists_what_is_missing() {
        let headers = (0..9).fold(OwnedHeaders::new(), |headers, _| {
            headers.insert(Header { key: "x", value: Some(&vec![b'x'; 40_000]) })
        });
        let large = record(vec![b'v'; 200_000], headers);
        let letter = arrived(DeadLetter::new(&large, "large", "group", Timestamp::now(), 100_000));
        assert!(size(&letter) <= 100_000, "{}", size(&letter));
        let truncated = Description::read(&letter).truncated.unwrap();
        assert!(truncated.starts_with("8 headers, all but the first"), "{truncated}");
        assert!(truncated.ends_with("of 200000 bytes of the value"), "{truncated}");
    }
}
