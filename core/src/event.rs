//! The records in Kafka: the event that announces an order, and the notification that a consumer makes of it. The
//! demo's consumer can read our events, and this module reads the demo's.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{Money, Order, OrderId, ProductName, Quantity, Shard, Timestamp, UserId, json};

/// Header names of an event.
pub mod header {
    pub const EVENT_ID: &str = "event_id";
    pub const SCHEMA_VERSION: &str = "schema_version";
    /// W3C trace context of the request that placed the order.
    pub const TRACEPARENT: &str = "traceparent";
}

/// Header names of a dead letter that identify the original record.
pub mod source_header {
    pub const TOPIC: &str = "dlq.topic";
    pub const PARTITION: &str = "dlq.partition";
    pub const OFFSET: &str = "dlq.offset";
}

/// Event `order.created`, version 1. The key of the record is the user id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderCreated {
    pub order_id: OrderId,
    pub user_id: UserId,
    pub product_name: ProductName,
    pub quantity: Quantity,
    /// Unit price × quantity.
    pub total: Money,
    pub status: String,
    /// Number of the shard, counted from 1.
    pub shard: u32,
    /// Time at which the order was accepted.
    pub timestamp: Timestamp,
}

/// A reason to reject a record of the events' topic. A dead letter carries its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the record has no value")]
    Empty,
    #[error("not the JSON of an event: {0}")]
    Json(String),
    #[error("unknown event_type {0:?}")]
    UnknownType(String),
    #[error("unknown schema_version {0:?}")]
    UnknownVersion(String),
    #[error("{field} {rule}")]
    Field { field: &'static str, rule: String },
}

impl OrderCreated {
    pub const EVENT_TYPE: &'static str = "order.created";
    /// Value of the `schema_version` header.
    pub const SCHEMA_VERSION: &'static str = "1";

    pub fn new(order: &Order, shard: &Shard) -> Self {
        Self {
            order_id: order.id,
            user_id: order.user_id.clone(),
            product_name: order.product_name.clone(),
            quantity: order.quantity,
            total: order.total(),
            status: order.status.to_string(),
            shard: shard.number.get(),
            timestamp: order.created_at,
        }
    }

    /// Returns the id of the event, which is the order's id, since an order has one event. The event can be made again
    /// from its row, and an event of the demo, which has no event id, gets the same one.
    pub fn event_id(&self) -> Uuid {
        self.order_id
    }

    /// Returns a trace context for an order whose client sent none. It derives from the order's id, so the trace can be
    /// found by that id.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{:016x}-00", self.order_id.simple(), self.order_id.as_u64_pair().1)
    }

    pub fn encode(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Encoded<'event> {
            event_type: &'static str,
            order_id: OrderId,
            user_id: &'event UserId,
            product_name: &'event ProductName,
            quantity: Quantity,
            total: Money,
            status: &'event str,
            shard: u32,
            timestamp: Timestamp,
        }
        serde_json::to_vec(&Encoded {
            event_type: Self::EVENT_TYPE,
            order_id: self.order_id,
            user_id: &self.user_id,
            product_name: &self.product_name,
            quantity: self.quantity,
            total: self.total,
            status: &self.status,
            shard: self.shard,
            timestamp: self.timestamp,
        })
        .expect("an event has only text and numbers")
    }

    /// Reads the value of a record; `schema_version` is its header, absent in events of the demo.
    pub fn decode(value: Option<&[u8]>, schema_version: Option<&[u8]>) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Type<'value> {
            #[serde(borrow)]
            event_type: std::borrow::Cow<'value, str>,
        }
        #[derive(Deserialize)]
        struct Encoded<'value> {
            #[serde(borrow)]
            event_type: std::borrow::Cow<'value, str>,
            order_id: OrderId,
            user_id: String,
            product_name: String,
            #[serde(borrow)]
            quantity: &'value RawValue,
            #[serde(borrow)]
            total: &'value RawValue,
            #[serde(default)]
            status: String,
            shard: u32,
            timestamp: Timestamp,
        }

        let value = value.filter(|value| !value.is_empty()).ok_or(DecodeError::Empty)?;
        let not_json = |error: serde_json::Error| DecodeError::Json(error.to_string());
        let encoded: Result<Encoded<'_>, _> = json::from_object(value);
        // An event of another type has other fields. The error then names the type rather than a field.
        let event_type = match &encoded {
            Ok(encoded) => encoded.event_type.clone(),
            Err(_) => json::from_object::<Type<'_>>(value).map_err(not_json)?.event_type,
        };
        if event_type != Self::EVENT_TYPE {
            return Err(DecodeError::UnknownType(event_type.chars().take(100).collect()));
        }
        if let Some(version) = schema_version.filter(|version| *version != Self::SCHEMA_VERSION.as_bytes()) {
            return Err(DecodeError::UnknownVersion(String::from_utf8_lossy(version).chars().take(100).collect()));
        }
        let encoded = encoded.map_err(not_json)?;
        let field = |field, rule: &str| DecodeError::Field { field, rule: rule.to_owned() };
        Ok(Self {
            order_id: encoded.order_id,
            user_id: UserId::parse(encoded.user_id).map_err(|rule| field("user_id", &rule))?,
            product_name: ProductName::parse(encoded.product_name).map_err(|rule| field("product_name", &rule))?,
            quantity: Quantity::parse(encoded.quantity.get()).map_err(|rule| field("quantity", &rule))?,
            total: Money::round_from(encoded.total.get())
                .filter(|total| (0..=Money::MAX_TOTAL.cents()).contains(&total.cents()))
                .ok_or_else(|| field("total", "must be a number from 0 to 10000000000000"))?,
            status: encoded.status,
            shard: encoded.shard,
            timestamp: encoded.timestamp,
        })
    }
}

/// The message that a mailer sends to the user: one for each event, in the partition number of its event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    pub event_id: Uuid,
    pub order_id: OrderId,
    pub user_id: String,
    pub message: String,
    /// Time at which the order was accepted.
    pub accepted_at: Timestamp,
    /// Timestamp of the event's record: the time at which it was sent to Kafka.
    pub published_at: Timestamp,
    pub notified_at: Timestamp,
    /// Partition of the event.
    pub partition: i32,
    /// Offset of the event.
    pub offset: i64,
}

impl Notification {
    pub fn message_for(event: &OrderCreated) -> String {
        format!(
            "Dear {}, your order for {} x {} (Total: ${}) has been confirmed! Order ID: {}",
            event.user_id,
            event.quantity,
            event.product_name,
            event.total.to_text(),
            event.order_id,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewOrder, ShardMap};

    fn event() -> OrderCreated {
        let map: ShardMap = "shard1=A-M,shard2=N-Z".parse().unwrap();
        let new = NewOrder::parse(br#"{"user_id":"alice","product_name":"Keyboard","quantity":2,"price":149.99}"#);
        let now = Timestamp::from_unix_microseconds(1_700_000_000_123_456).unwrap();
        let order = new.unwrap().into_order(Uuid::nil(), now);
        OrderCreated::new(&order, map.shard_of(&order.user_id))
    }

    #[test]
    fn the_encoding_is_that_of_the_demo() {
        let expected = r#"{"event_type":"order.created","order_id":"00000000-0000-0000-0000-000000000000","user_id":"alice","product_name":"Keyboard","quantity":2,"total":299.98,"status":"created","shard":1,"timestamp":"2023-11-14T22:13:20.123456Z"}"#;
        assert_eq!(String::from_utf8(event().encode()).unwrap(), expected);
    }

    #[test]
    fn an_event_survives_encoding_and_decoding() {
        assert_eq!(OrderCreated::decode(Some(&event().encode()), Some(b"1")), Ok(event()));
    }

    #[test]
    fn an_event_of_the_demo_with_float_noise_and_a_time_zone_is_decoded() {
        let value = br#"{"event_type":"order.created","order_id":"00000000-0000-0000-0000-000000000000","user_id":"alice","product_name":"Keyboard","quantity":3,"total":0.30000000000000004,"status":"created","shard":1,"timestamp":"2023-11-15T03:43:20.123456789+05:30"}"#;
        let decoded = OrderCreated::decode(Some(value), None).unwrap();
        assert_eq!((decoded.total, decoded.timestamp), (Money::from_cents(30), event().timestamp));
    }

    #[test]
    fn a_record_that_is_no_known_event_is_refused_with_the_reason() {
        let good = String::from_utf8(event().encode()).unwrap();
        let long = good.replace("Keyboard", &"k".repeat(256));
        for (value, version, reason) in [
            ("", None, "the record has no value"),
            ("{", None, "not the JSON of an event: EOF while parsing an object at line 1 column 1"),
            (r#" ["order.created"]"#, None, "not the JSON of an event: invalid type: sequence"),
            (r#"{"event_type":"order.updated"}"#, None, "unknown event_type \"order.updated\""),
            (&good, Some("2"), "unknown schema_version \"2\""),
            (&good.replace("\"alice\"", "5"), None, "not the JSON of an event: invalid type"),
            (&good.replace(":2,", ":0,"), None, "quantity must be"),
            (&good.replace("299.98", "\"299.98\""), None, "total must be"),
            (&long, None, "product_name must have at most 255 characters"),
        ] {
            let error =
                OrderCreated::decode(Some(value.as_bytes()), version.map(str::as_bytes)).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{value} gave {error}");
        }
    }

    #[test]
    fn an_array_of_the_fields_is_refused() {
        let fields = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&event().encode()).unwrap();
        let names =
            ["event_type", "order_id", "user_id", "product_name", "quantity", "total", "status", "shard", "timestamp"];
        let array = serde_json::to_vec(&names.map(|name| &fields[name])).unwrap();
        assert!(matches!(OrderCreated::decode(Some(&array), None), Err(DecodeError::Json(_))));
    }

    #[test]
    fn the_message_is_that_of_the_demo() {
        assert_eq!(
            Notification::message_for(&event()),
            "Dear alice, your order for 2 x Keyboard (Total: $299.98) has been confirmed! Order ID: 00000000-0000-0000-0000-000000000000"
        );
    }
}
