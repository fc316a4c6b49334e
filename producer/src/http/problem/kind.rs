//! The table of problem types: the responses of the OpenAPI document and the reference are made from it.

use std::collections::BTreeMap;

use utoipa::openapi::{
    ContentBuilder, Header, HeaderBuilder, Ref, RefOr, Response, ResponseBuilder,
    schema::{ObjectBuilder, Type},
};

/// A problem type of the API.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The last segment of the type's URI.
    pub name: &'static str,
    pub status: u16,
    pub title: &'static str,
    /// The cause, and what a client can do.
    pub meaning: &'static str,
}

const fn kind(name: &'static str, status: u16, title: &'static str, meaning: &'static str) -> Kind {
    Kind { name, status, title, meaning }
}

pub const MALFORMED: Kind = kind(
    "malformed",
    400,
    "Malformed body",
    "The body is not the JSON that the operation needs: an order, or a replay.",
);
pub const INVALID_ORDER: Kind = kind(
    "invalid-order",
    400,
    "The order breaks a rule",
    "One or more fields break a rule; `errors` names each field and its rule.",
);
pub const INVALID_PARAMETER: Kind = kind(
    "invalid-parameter",
    400,
    "A parameter breaks a rule",
    "A query parameter, header or path segment is unknown or breaks a rule; `errors` names it.",
);
pub const REPLAY_OFF: Kind =
    kind("replay-off", 403, "Replay is off", "This producer runs without `DEAD_LETTER_REPLAY`.");
pub const NOT_FOUND: Kind = kind("not-found", 404, "Not found", "No shard has the order, or the path does not exist.");
pub const RECEIPT_ABSENT: Kind = kind(
    "receipt-absent",
    404,
    "No receipt",
    "The receipt is not written yet (`receipt_status` is `pending`), or is gone from the bucket (`missing`).",
);
pub const METHOD_NOT_ALLOWED: Kind = kind(
    "method-not-allowed",
    405,
    "Method not allowed",
    "The path does not support the method; `Allow` lists those that it supports.",
);
pub const BODY_TOO_SLOW: Kind = kind("body-too-slow", 408, "Body too slow", "The body did not arrive within 10 s.");
pub const REPLAY_UNDER_WAY: Kind = kind(
    "replay-under-way",
    409,
    "A replay is in progress",
    "Another replay runs. Repeat the request when it has ended: no letter is replayed twice.",
);
pub const BODY_TOO_LARGE: Kind = kind("body-too-large", 413, "Body too large", "The body has more than 64 KiB.");
pub const UNSUPPORTED_MEDIA_TYPE: Kind = kind(
    "unsupported-media-type",
    415,
    "Unsupported media type",
    "The body is not `application/json`, or is compressed.",
);
pub const IDEMPOTENCY_KEY_REUSED: Kind = kind(
    "idempotency-key-reused",
    422,
    "The Idempotency-Key was used for another order",
    "The user has used the key for an order with other fields.",
);
pub const INTERNAL: Kind =
    kind("internal", 500, "Internal error", "A bug in OrderFlow; the log has the cause under the request id.");
pub const REFUSED: Kind = kind(
    "refused",
    500,
    "The database refuses the order",
    "The database refuses this very order. Nothing was stored, and a retry does not help.",
);
pub const NOT_IMPLEMENTED: Kind =
    kind("not-implemented", 501, "Not implemented", "The dead-letter topic has more than one partition.");
pub const NOT_ACCEPTED: Kind = kind(
    "not-accepted",
    503,
    "The order was not accepted",
    "The shard is down, or its queue is full. Nothing was stored: repeat the request.",
);
pub const OUTCOME_UNKNOWN: Kind = kind(
    "outcome-unknown",
    503,
    "The order's outcome is unknown",
    "The shard did not answer in time, so the order may be stored. Repeat the request with the same Idempotency-Key, or get the order by `order_id`.",
);
pub const SHARD_UNAVAILABLE: Kind = kind(
    "shard-unavailable",
    503,
    "A shard is down",
    "The answer needs a shard that did not answer; `unavailable_shards` names it.",
);
pub const S3_UNAVAILABLE: Kind = kind("s3-unavailable", 503, "S3 is down", "The receipt cannot be read from S3.");
pub const KAFKA_UNAVAILABLE: Kind = kind(
    "kafka-unavailable",
    503,
    "Kafka is down",
    "Kafka did not answer. A replay may have replayed some letters; it is safe to repeat.",
);
pub const NO_ANSWER_IN_TIME: Kind =
    kind("no-answer-in-time", 503, "No answer in time", "The request was not answered by its deadline.");
pub const OVERLOADED: Kind = kind(
    "overloaded",
    503,
    "Overloaded",
    "Lists and bodies in flight use all memory for them. Nothing was stored: ask for a smaller page, or repeat later.",
);
pub const TOO_MANY_FEEDS: Kind =
    kind("too-many-feeds", 503, "Too many feeds", "As many feeds are open as `MAX_FEEDS` allows.");
pub const TOO_MANY_LOOK_UPS: Kind =
    kind("too-many-look-ups", 503, "Too many look-ups", "As many trails are being read as the producer allows.");
pub const TOO_MANY_LISTS: Kind = kind(
    "too-many-lists",
    503,
    "Too many lists",
    "As many lists of dead letters are being read as the producer allows.",
);

/// Every type, in the order of the statuses.
pub const ALL: &[&Kind] = &[
    &MALFORMED,
    &INVALID_ORDER,
    &INVALID_PARAMETER,
    &REPLAY_OFF,
    &NOT_FOUND,
    &RECEIPT_ABSENT,
    &METHOD_NOT_ALLOWED,
    &BODY_TOO_SLOW,
    &REPLAY_UNDER_WAY,
    &BODY_TOO_LARGE,
    &UNSUPPORTED_MEDIA_TYPE,
    &IDEMPOTENCY_KEY_REUSED,
    &INTERNAL,
    &REFUSED,
    &NOT_IMPLEMENTED,
    &NOT_ACCEPTED,
    &OUTCOME_UNKNOWN,
    &SHARD_UNAVAILABLE,
    &S3_UNAVAILABLE,
    &KAFKA_UNAVAILABLE,
    &NO_ANSWER_IN_TIME,
    &OVERLOADED,
    &TOO_MANY_FEEDS,
    &TOO_MANY_LOOK_UPS,
    &TOO_MANY_LISTS,
];

impl Kind {
    /// Returns the type's URI.
    pub fn uri(&self) -> String {
        format!("https://orderflow.dev/problems/{}", self.name)
    }
}

/// Returns the responses of an operation that can fail with these types, beside those that every operation can.
pub fn responses(kinds: &[&Kind]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<&Kind>> = BTreeMap::new();
    for kind in kinds.iter().chain(&[&INVALID_PARAMETER, &INTERNAL, &NO_ANSWER_IN_TIME]) {
        by_status.entry(kind.status).or_default().push(kind);
    }
    by_status.into_iter().map(|(status, kinds)| (status.to_string(), RefOr::T(response(status, &kinds)))).collect()
}

fn response(status: u16, kinds: &[&Kind]) -> Response {
    let meanings: Vec<_> = kinds.iter().map(|kind| format!("`{}`: {}", kind.name, kind.meaning)).collect();
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let response = ResponseBuilder::new().description(meanings.join(" ")).content("application/problem+json", content);
    if status == 503 { response.header("Retry-After", retry_after()).build() } else { response.build() }
}

fn retry_after() -> Header {
    HeaderBuilder::new()
        .description(Some("Seconds"))
        .schema(Some(ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).build()))
        .build()
}

/// Declares the responses of an operation: `declare_responses!(Name: KIND, KIND)`, for use in
/// `#[utoipa::path(responses(…, Name))]`.
macro_rules! declare_responses {
    ($name:ident: $($kind:ident),* $(,)?) => {
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::Response>> {
                $crate::http::problem::kind::responses(&[$(&$crate::http::problem::kind::$kind),*])
            }
        }
    };
}

pub(in crate::http) use declare_responses;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_type_once_in_the_order_of_the_statuses() {
        assert!(ALL.is_sorted_by_key(|kind| kind.status));
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
