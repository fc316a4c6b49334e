//! Converts a record of the events' topic to a notification, or to a dead letter with the reason. The conversion is
//! pure and fails in no other way for any record, so no record blocks its partition.

use std::panic::{AssertUnwindSafe, catch_unwind};

use orderflow_core::{Notification, OrderCreated, OrderId, Timestamp, event};
use orderflow_service::kafka::header;
use rdkafka::Message;
use uuid::Uuid;

/// The longest reason, in characters. A parser's message may quote the whole input.
const REASON_CHARACTERS: usize = 500;

#[derive(Debug)]
pub enum Outcome {
    Notified {
        /// The user id.
        key: String,
        /// The notification as JSON.
        value: Vec<u8>,
        event_id: Uuid,
        order_id: OrderId,
        accepted_at: Timestamp,
    },
    DeadLetter {
        reason: String,
    },
}

/// Reads a record. `now` becomes the notification's `notified_at`.
pub fn read<M: Message>(record: &M, now: Timestamp) -> Outcome {
    // A panic in a parser must make one dead letter, and not stop all events behind it.
    let outcome = catch_unwind(AssertUnwindSafe(|| notify(record, now)));
    outcome
        .unwrap_or_else(|_| Err("the parser panicked".to_owned()))
        .unwrap_or_else(|reason| Outcome::DeadLetter { reason: reason.chars().take(REASON_CHARACTERS).collect() })
}

fn notify<M: Message>(record: &M, now: Timestamp) -> Result<Outcome, String> {
    let schema_version = header::last(record.headers(), event::header::SCHEMA_VERSION);
    let event = OrderCreated::decode(record.payload(), schema_version).map_err(|error| error.to_string())?;
    let event_id = header::last_text(record.headers(), event::header::EVENT_ID)
        .and_then(|id| Uuid::parse_str(id).ok())
        .unwrap_or_else(|| event.event_id());
    let published_at =
        record.timestamp().to_millis().and_then(|ms| Timestamp::from_unix_microseconds(ms.saturating_mul(1000)));
    let notification = Notification {
        event_id,
        order_id: event.order_id,
        user_id: event.user_id.as_str().to_owned(),
        message: Notification::message_for(&event),
        accepted_at: event.timestamp,
        // Only record formats older than headers have no timestamp.
        published_at: published_at.unwrap_or(now),
        notified_at: now,
        partition: record.partition(),
        offset: record.offset(),
    };
    // A time may parse because of its zone, and be outside of RFC 3339's years in UTC.
    let value =
        serde_json::to_vec(&notification).map_err(|error| format!("cannot encode the notification: {error}"))?;
    let order_id = event.order_id;
    Ok(Outcome::Notified { key: notification.user_id, value, event_id, order_id, accepted_at: event.timestamp })
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

    use super::*;

    const EVENT: &str = r#"{"event_type":"order.created","order_id":"00000000-0000-0000-0000-000000000001","user_id":"alice","product_name":"Keyboard","quantity":2,"total":299.98,"status":"created","shard":1,"timestamp":"2023-11-14T22:13:20.123456Z"}"#;

    fn record(value: &str, headers: &[(&str, &str)]) -> OwnedMessage {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
        let timestamp = rdkafka::Timestamp::CreateTime(1_700_000_000_500);
        OwnedMessage::new(Some(value.into()), Some(b"alice".into()), "orders".into(), timestamp, 3, 42, Some(headers))
    }

    fn notification(record: &OwnedMessage) -> Notification {
        match read(record, Timestamp::now()) {
            Outcome::Notified { value, .. } => serde_json::from_slice(&value).unwrap(),
            Outcome::DeadLetter { reason } => panic!("{reason}"),
        }
    }

    fn reason(record: &OwnedMessage) -> String {
        match read(record, Timestamp::now()) {
            Outcome::DeadLetter { reason } => reason,
            Outcome::Notified { order_id, .. } => panic!("{order_id}"),
        }
    }

    #[test]
    fn an_event_becomes_a_notification_with_its_partition_and_offset() {
        let id = "11111111-1111-1111-1111-111111111111";
        let notification = notification(&record(EVENT, &[("event_id", id), ("schema_version", "1")]));
        assert_eq!(notification.event_id.to_string(), id);
        assert_eq!((notification.partition, notification.offset), (3, 42));
        assert_eq!(notification.published_at.to_string(), "2023-11-14T22:13:20.500000Z");
        assert_eq!(notification.accepted_at.to_string(), "2023-11-14T22:13:20.123456Z");
        assert!(notification.message.starts_with("Dear alice, your order for 2 x Keyboard"));
    }

    #[test]
    fn an_event_without_a_valid_id_gets_the_id_of_its_order() {
        for headers in [&[][..], &[("event_id", "17")]] {
            let notification = notification(&record(EVENT, headers));
            assert_eq!(notification.event_id, notification.order_id);
        }
    }

    #[test]
    fn a_record_that_is_no_known_event_becomes_a_dead_letter_with_the_reason() {
        assert!(reason(&record("{", &[])).starts_with("not the JSON of an event"));
        assert_eq!(reason(&record(EVENT, &[("schema_version", "2")])), "unknown schema_version \"2\"");
    }

    #[test]
    fn a_reason_is_bounded() {
        let long = EVENT.replace("\"shard\":1", &format!("\"shard\":\"{}\"", "9".repeat(100_000)));
        assert_eq!(reason(&record(&long, &[])).chars().count(), REASON_CHARACTERS);
    }

    #[test]
    fn a_time_that_cannot_be_written_becomes_a_dead_letter() {
        for time in ["9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00"] {
            reason(&record(&EVENT.replace("2023-11-14T22:13:20.123456Z", time), &[]));
        }
    }
}
