//! Every error of the API: RFC 9457 `application/problem+json`, with the demo's `error` member beside it. The messages
//! of Postgres, Kafka and S3 go only to the log: they name users, addresses and constraints, which clients must not
//! see.

pub mod kind;

use std::fmt;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use orderflow_core::{OrderId, order::Invalid, plain};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    dead_letters,
    shard::{PlaceError, ReadError},
};
use kind::Kind;
pub(in crate::http) use kind::declare_responses;

/// Seconds after which a client may try again; outages of a shard are usually a failover or a restart.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// An error, as RFC 9457 describes it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// URI of the problem type.
    #[serde(rename = "type")]
    #[schema(example = "https://orderflow.dev/problems/invalid-order")]
    kind: String,
    #[schema(example = "The order breaks a rule")]
    title: &'static str,
    status: u16,
    #[schema(example = "price must have at most two decimals")]
    detail: String,
    /// Copy of `detail`, for clients that read it before RFC 9457.
    error: String,
    /// Fields that broke a rule.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// Order that may have been stored: get it by this id, or send it again with the same Idempotency-Key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<uuid::Uuid>)]
    order_id: Option<OrderId>,
    /// State of a receipt that cannot be read: `pending` (it will be written) or `missing` (it was written and is
    /// gone).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "pending")]
    receipt_status: Option<&'static str>,
    /// Shards that did not answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unavailable_shards: Vec<String>,
    /// The message of a server, for the log.
    #[serde(skip)]
    cause: Option<String>,
    /// True if clients caused it, by asking for more than is served at once.
    #[serde(skip)]
    is_by_clients: bool,
}

/// The message of a server about an error, carried beside the response, which does not show it.
#[derive(Clone, Debug)]
pub struct Cause(pub String);

/// Marks a response whose 503 clients caused, by asking for more than is served at once.
#[derive(Clone, Copy, Debug)]
pub struct ByClients;

#[derive(Debug, Serialize, ToSchema)]
pub struct FieldError {
    #[schema(example = "price")]
    field: String,
    #[schema(example = "must have at most two decimals")]
    detail: String,
}

impl Problem {
    fn new(kind: &Kind, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            kind: kind.uri(),
            title: kind.title,
            status: kind.status,
            error: detail.clone(),
            detail,
            errors: Vec::new(),
            order_id: None,
            receipt_status: None,
            unavailable_shards: Vec::new(),
            cause: None,
            is_by_clients: false,
        }
    }

    fn caused_by(self, cause: impl Into<String>) -> Self {
        Self { cause: Some(cause.into()), ..self }
    }

    /// Returns the problem of a client that asks for more than is served at once.
    fn overload(kind: &Kind, detail: impl Into<String>) -> Self {
        Self { is_by_clients: true, ..Self::new(kind, detail) }
    }

    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(&kind::NOT_FOUND, detail)
    }

    pub fn method_not_allowed(detail: impl Into<String>) -> Self {
        Self::new(&kind::METHOD_NOT_ALLOWED, detail)
    }

    pub fn internal() -> Self {
        let detail = "internal error: the log has it under the request id";
        Self::new(&kind::INTERNAL, detail)
    }

    /// Returns the problem of a query parameter, header or path segment that breaks a rule.
    pub fn invalid_parameter(name: &str, rule: impl Into<String>) -> Self {
        let rule = rule.into();
        let problem = Self::new(&kind::INVALID_PARAMETER, format!("{name} {rule}"));
        Self { errors: vec![FieldError { field: name.to_owned(), detail: rule }], ..problem }
    }

    pub fn unsupported_media_type() -> Self {
        let detail = "Content-Type must be application/json";
        Self::new(&kind::UNSUPPORTED_MEDIA_TYPE, detail)
    }

    pub fn unsupported_encoding(encoding: &str) -> Self {
        let encoding = plain::escape(&encoding.chars().take(100).collect::<String>());
        let detail =
            format!("Content-Encoding {encoding} is not supported: send the body uncompressed, without this header");
        Self::new(&kind::UNSUPPORTED_MEDIA_TYPE, detail)
    }

    /// Returns the problem for a request that was still in progress at its deadline, whatever delayed it.
    pub fn no_answer_in_time(seconds: u64) -> Self {
        let detail = format!("no answer within {seconds} s");
        Self::new(&kind::NO_ANSWER_IN_TIME, detail)
    }

    pub fn body_too_large(limit: usize) -> Self {
        let detail = format!("the body must have at most {limit} bytes");
        Self::new(&kind::BODY_TOO_LARGE, detail)
    }

    pub fn body_too_slow() -> Self {
        Self::new(&kind::BODY_TOO_SLOW, "the body did not arrive in time")
    }

    pub fn body_broken() -> Self {
        Self::malformed("the body ended early")
    }

    pub fn overloaded() -> Self {
        let detail =
            "too many large lists and bodies are in flight: ask for a smaller page, or send the request again later";
        Self::overload(&kind::OVERLOADED, detail)
    }

    pub fn too_many_feeds() -> Self {
        let detail = "too many feeds are open";
        Self::overload(&kind::TOO_MANY_FEEDS, detail)
    }

    pub fn too_many_look_ups() -> Self {
        let detail = "too many trails are being read";
        Self::overload(&kind::TOO_MANY_LOOK_UPS, detail)
    }

    /// Returns the problem of a body that is not the required JSON.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(&kind::MALFORMED, detail)
    }

    pub fn kafka_unavailable(reason: &str) -> Self {
        let detail = "Kafka is down: see the producer's /readyz and its log for the reason";
        Self::new(&kind::KAFKA_UNAVAILABLE, detail).caused_by(reason)
    }

    pub fn too_many_lists() -> Self {
        let detail = "too many lists of dead letters are being read";
        Self::overload(&kind::TOO_MANY_LISTS, detail)
    }

    pub fn replay_off() -> Self {
        let detail = "this producer may not replay dead letters: DEAD_LETTER_REPLAY (--dead-letter-replay) is off";
        Self::new(&kind::REPLAY_OFF, detail)
    }

    pub fn replay_under_way() -> Self {
        let detail = "another replay is in progress: repeat the request when it has ended; no letter is replayed twice";
        Self::new(&kind::REPLAY_UNDER_WAY, detail)
    }

    pub fn not_implemented(detail: impl Into<String>) -> Self {
        Self::new(&kind::NOT_IMPLEMENTED, detail)
    }

    pub fn receipt_absent(status: &'static str) -> Self {
        let detail = match status {
            "pending" => "the receipt is not written yet",
            _ => "the receipt was written, but is no longer in the bucket",
        };
        let problem = Self::new(&kind::RECEIPT_ABSENT, detail);
        Self { receipt_status: Some(status), ..problem }
    }

    pub fn s3_unavailable(reason: &str) -> Self {
        let detail = "S3 is down: the receipt cannot be read now";
        Self::new(&kind::S3_UNAVAILABLE, detail).caused_by(reason)
    }

    pub fn shards_unavailable(errors: &[ReadError]) -> Self {
        let names: Vec<String> = errors.iter().map(|error| error.shard.clone()).collect();
        let joined = |text: fn(&ReadError) -> String| errors.iter().map(text).collect::<Vec<_>>().join("; ");
        let detail = joined(ReadError::without_reason);
        let problem = Self::new(&kind::SHARD_UNAVAILABLE, detail);
        let is_by_clients = errors.iter().all(|error| error.is_crowded);
        Self { unavailable_shards: names, is_by_clients, ..problem.caused_by(joined(ToString::to_string)) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        match invalid {
            Invalid::Malformed { field, detail } => {
                let problem = Self::new(
                    &kind::MALFORMED,
                    match field {
                        Some(field) => format!("{field}: {detail}"),
                        None => detail.clone(),
                    },
                );
                let errors = field.map(|field| FieldError { field: field.to_owned(), detail }).into_iter().collect();
                Self { errors, ..problem }
            }
            Invalid::Fields(violations) => {
                let detail: Vec<String> =
                    violations.iter().map(|violation| format!("{} {}", violation.field, violation.detail)).collect();
                let errors = violations
                    .into_iter()
                    .map(|violation| FieldError {
                        field: violation.field.to_owned(),
                        detail: violation.detail.into_owned(),
                    })
                    .collect();
                Self { errors, ..Self::new(&kind::INVALID_ORDER, detail.join("; ")) }
            }
        }
    }
}

impl From<dead_letters::Error> for Problem {
    fn from(error: dead_letters::Error) -> Self {
        match error {
            dead_letters::Error::Kafka(reason) => Self::kafka_unavailable(&reason),
            dead_letters::Error::SeveralPartitions(several) => Self::not_implemented(several.to_string()),
            dead_letters::Error::TooManyReaders => Self::too_many_lists(),
            dead_letters::Error::ReplayIsOff => Self::replay_off(),
            dead_letters::Error::ReplayUnderWay => Self::replay_under_way(),
        }
    }
}

impl From<PlaceError> for Problem {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::NotAccepted(_) | PlaceError::QueueFull(_) | PlaceError::Moved => Self {
                is_by_clients: matches!(error, PlaceError::QueueFull(_)),
                ..Self::new(&kind::NOT_ACCEPTED, format!("{error}; nothing was stored, so the order can be sent again"))
            },
            PlaceError::OutcomeUnknown(order_id) => {
                let problem = Self::new(
                    &kind::OUTCOME_UNKNOWN,
                    format!(
                        "the shard did not answer in time, so the order may be stored: get it by the id {order_id}, or send \
                         it again with the same Idempotency-Key"
                    ),
                );
                Self { order_id: Some(order_id), ..problem }
            }
            PlaceError::KeyReused => Self::new(
                &kind::IDEMPOTENCY_KEY_REUSED,
                "the Idempotency-Key was used by this user for an order with other fields; use a new key",
            ),
            PlaceError::Refused(reason) => {
                Self::new(&kind::REFUSED, "the database refuses the order, and nothing was stored").caused_by(reason)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response =
            (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))], body)
                .into_response();
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(Cause(cause));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if self.is_by_clients {
            response.extensions_mut().insert(ByClients);
        }
        response
    }
}
