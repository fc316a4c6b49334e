//! `GET /api/dead-letters` and `POST /api/dead-letters/replay`: the events that no consumer could read, and their
//! replay.

use std::fmt;

use axum::{Json, body::Body, extract::State, http::HeaderMap, response::Response};
use orderflow_core::{
    Timestamp, json,
    number::{self, NumberError},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    app::Shared,
    body,
    connection::Peer,
    parameter::{DeadLetterParameters, whole},
    problem::{Problem, declare_responses},
};
use crate::dead_letters::Letter;

/// Dead letters in a page, unless the client asks for another number.
const DEFAULT_LIMIT: usize = 20;
/// Most dead letters in a page.
const MAX_LIMIT: usize = 100;

/// Most bytes of a letter in a response: 2 KiB of value and 1.5 KiB of texts, each byte of which may become six.
const MOST_BYTES: usize = 24 * 1024;

#[derive(Serialize, ToSchema)]
pub struct DeadLetterList {
    dead_letters: Vec<DeadLetterView>,
    /// Dead letters that were not replayed yet
    waiting: u64,
    /// All dead letters, replayed or not
    total: u64,
    /// True if `waiting` and `total` count all dead letters, not only the newest ones
    complete: bool,
    /// True if this producer may replay them
    replay: bool,
    /// The `before` of the next page; null on the last
    next_before: Option<i64>,
}

#[derive(Serialize, ToSchema)]
pub struct DeadLetterView {
    #[schema(example = 4)]
    offset: i64,
    /// Time at which the event could not be read
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    #[schema(example = "unknown event_type \"order.updated\"")]
    reason: String,
    /// Topic of the event; null if no consumer wrote this letter
    #[schema(example = "orders")]
    source_topic: Option<String>,
    source_partition: Option<i32>,
    source_offset: Option<i64>,
    #[schema(example = "alice")]
    key: Option<String>,
    /// First 2 KiB of the value, as text
    value: String,
    /// Length of the whole value, in bytes
    value_bytes: usize,
    /// True until the letter is replayed
    waiting: bool,
}

// [`through`] reads it by hand, since `4.0` is an integer in JSON Schema.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described")]
pub struct ReplayBody {
    /// Offset up to and including which waiting letters are replayed: the newest one that the client has seen
    #[schema(example = 4, minimum = 0, maximum = 999_999_999_999_999_999_i64)]
    through: i64,
}

/// Reads the offset of a [`ReplayBody`].
fn through(body: &[u8]) -> Result<i64, Problem> {
    #[derive(Deserialize)]
    #[serde(expecting = "an object with through")]
    struct Fields<'body> {
        #[serde(borrow)]
        through: &'body RawValue,
    }
    let malformed =
        |why: &dyn fmt::Display| Problem::malformed(format!("the body must be {{\"through\":OFFSET}}: {why}"));
    let fields: Fields<'_> = json::from_object(body).map_err(|error| malformed(&error))?;
    match number::scaled(fields.through.get(), 0) {
        Ok(offset) if offset >= 0 => Ok(offset),
        Err(NumberError::NotANumber) => Err(malformed(&"through is not a number")),
        _ => Err(Problem::invalid_parameter("through", "must be an offset, 0 or more")),
    }
}

#[derive(Serialize, ToSchema)]
pub struct Replayed {
    #[schema(example = 2)]
    replayed: usize,
}

impl From<Letter> for DeadLetterView {
    fn from(letter: Letter) -> Self {
        let Letter { offset, at, reason, source, key, value, value_bytes, waiting } = letter;
        let source_place = source.as_ref().map(|source| (source.partition, source.offset));
        Self {
            offset,
            at,
            reason,
            source_topic: source.map(|source| source.topic),
            source_partition: source_place.map(|(partition, _)| partition),
            source_offset: source_place.map(|(_, offset)| offset),
            key,
            value,
            value_bytes,
            waiting,
        }
    }
}

declare_responses!(ListDeadLettersProblems: NOT_IMPLEMENTED, KAFKA_UNAVAILABLE, OVERLOADED, TOO_MANY_LISTS);

/// List dead letters, newest first
///
/// Events that no consumer could read, as long as Kafka keeps them.
#[utoipa::path(
    get, path = "/api/dead-letters", tag = "dead letters",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Letters in a page; 20 by default"),
        ("before" = Option<i64>, Query, minimum = 0, description = "`next_before` of the previous page"),
    ),
    responses(
        (status = 200, body = DeadLetterList, description = "A page of dead letters"),
        ListDeadLettersProblems,
    )
)]
pub async fn list_dead_letters(
    State(app): State<Shared>,
    Peer(peer): Peer,
    parameters: DeadLetterParameters,
) -> Result<Response, Problem> {
    let limit = match parameters.limit.as_deref().map(whole::<usize>) {
        None => DEFAULT_LIMIT,
        Some(Some(limit)) if (1..=MAX_LIMIT).contains(&limit) => limit,
        Some(_) => return Err(Problem::invalid_parameter("limit", "must be a whole number from 1 to 100")),
    };
    let before = match parameters.before.as_deref().map(whole::<i64>) {
        None => None,
        Some(Some(before)) => Some(before),
        Some(None) => return Err(Problem::invalid_parameter("before", "must be a next_before of this API")),
    };
    let memory = app.memory.reserve(limit * MOST_BYTES, peer).await?;
    let (page, counts) = app.dead_letters.list(before, limit, peer).await?;
    Ok(memory.carry(Json(DeadLetterList {
        dead_letters: page.letters.into_iter().map(DeadLetterView::from).collect(),
        waiting: counts.waiting,
        total: counts.total,
        complete: counts.complete,
        replay: app.dead_letters.may_replay(),
        next_before: page.next_before,
    })))
}

declare_responses!(ReplayDeadLettersProblems: MALFORMED, REPLAY_OFF, BODY_TOO_SLOW, REPLAY_UNDER_WAY, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, NOT_IMPLEMENTED, KAFKA_UNAVAILABLE, OVERLOADED);

/// Replay dead letters
///
/// Sends the waiting letters back to their topic, each once. Fix first what made them unreadable: an event that still
/// cannot be read comes back as a new letter. Needs DEAD_LETTER_REPLAY.
#[utoipa::path(
    post, path = "/api/dead-letters/replay", tag = "dead letters", request_body = ReplayBody,
    responses(
        (status = 200, body = Replayed, description = "The number of replayed letters; others are skipped"),
        ReplayDeadLettersProblems,
    )
)]
pub async fn replay_dead_letters(
    State(app): State<Shared>,
    Peer(peer): Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Replayed>, Problem> {
    // Checked before the body: a replay that is off needs no valid body.
    if !app.dead_letters.may_replay() {
        return Err(Problem::replay_off());
    }
    body::require_json(&headers)?;
    let replayed = app.dead_letters.replay(through(&body::read(body, &app.memory, peer).await?)?).await?;
    Ok(Json(Replayed { replayed }))
}
