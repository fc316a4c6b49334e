//! The form of a dead letter: the record as it was, and headers that say where it came from and why it is here. Written by
//! the consumer's pipeline, read by whoever looks at letters or replays them.

use orderflow_core::Timestamp;
use orderflow_service::kafka::header;
use rdkafka::{
    Message,
    message::{Header, Headers, OwnedHeaders},
};

/// What a dead letter of this size needs fits into the 2 MiB that `orders.dlq` takes: key, value and headers, in bytes.
/// The rest is for Kafka's framing.
pub const SIZE_LIMIT: usize = 2 * 1024 * 1024 - 4096;

/// Names of the headers that a dead letter has in addition to its own.
pub mod name {
    /// All of them begin like this, and none is written back by a replay.
    pub const PREFIX: &str = "dlq.";
    pub use orderflow_core::event::source_header::{OFFSET, PARTITION, TOPIC};
    pub const REASON: &str = "dlq.reason";
    /// The consumer group that could not read it.
    pub const GROUP: &str = "dlq.group";
    pub const FAILED_AT: &str = "dlq.failed_at";
    /// Only if not all of the record fitted: what is missing.
    pub const TRUNCATED: &str = "dlq.truncated";
    /// Names the offset before which all letters of the partition are replayed; a [marker](crate::marker) alone has it.
    pub const REPLAYED_BEFORE: &str = "dlq.replayed_before";
}

/// What to write to the topic of dead letters.
pub struct DeadLetter<'record> {
    pub key: Option<&'record [u8]>,
    pub value: Option<&'record [u8]>,
    pub headers: OwnedHeaders,
}

/// What the headers of a dead letter tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Topic, partition and offset; `None` if somebody else wrote this record.
    pub source: Option<Source>,
    pub reason: String,
    pub group: String,
    pub failed_at: String,
    /// What is missing, if anything.
    pub truncated: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

impl<'record> DeadLetter<'record> {
    /// Key, value and headers as they were. A record that was compressed on its way can be larger than any record that
    /// Kafka would take from us: what does not fit `limit` bytes is left out, the end of the value first, and
    /// `dlq.truncated` says so. The whole record is still where it came from, for as long as that topic keeps it.
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
        // 256 bytes are for the header about what is missing.
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

/// The headers that the record had before it became a dead letter, or `None` if not all of them can be written again.
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

/// Name, value and the lengths of both.
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

    /// The letter as its reader gets it.
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
    fn a_dead_letter_keeps_the_record_and_says_where_it_came_from() {
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
    fn what_dies_a_second_time_tells_of_the_second() {
        let first = record(b"{".to_vec(), OwnedHeaders::new().insert(Header { key: name::OFFSET, value: Some("1") }));
        let letter = arrived(DeadLetter::new(&first, "again", "group", Timestamp::now(), SIZE_LIMIT));
        assert_eq!(Description::read(&letter).source.unwrap().offset, 42);
        assert_eq!(original_headers(letter.headers()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_that_is_too_large_is_cut_to_fit_and_says_so() {
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
