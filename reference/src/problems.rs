//! Lists the problem types of the API with their meanings.

/// A type of problem, as `producer/src/http/problem.rs` creates it.
pub struct ProblemType {
    /// The last part of its URI.
    pub name: &'static str,
    pub status: u16,
    /// `None`: the title depends on the request.
    pub title: Option<&'static str>,
    pub meaning: &'static str,
}

/// Every problem type, by status. Move this table into `producer/src/http/problem.rs` once the problems there are made from
/// a table: then the test that compares the two can go.
pub const PROBLEMS: &[ProblemType] = &[
    problem(
        400,
        "invalid-order",
        "The order breaks a rule",
        "Fields of the order break rules; `errors` names each field and its rule.",
    ),
    problem(
        400,
        "invalid-parameter",
        "A parameter breaks a rule",
        "A query parameter, a header or a part of the path breaks a rule, or is unknown.",
    ),
    ProblemType {
        title: None,
        ..problem(
            400,
            "malformed",
            "",
            "The body is not the JSON object that the operation expects, or it ended early.",
        )
    },
    problem(
        403,
        "replay-off",
        "Replay is off",
        "This producer does not replay dead letters: `DEAD_LETTER_REPLAY` is off.",
    ),
    problem(404, "not-found", "Not found", "The order or the path does not exist."),
    problem(
        404,
        "receipt-absent",
        "No receipt",
        "The order has no receipt: `receipt_status` is `pending` until it is written, `missing` if it was written and is gone.",
    ),
    problem(405, "method-not-allowed", "Method not allowed", "The path does not support the method."),
    problem(408, "body-too-slow", "Body too slow", "The body did not arrive in time."),
    problem(
        409,
        "replay-under-way",
        "A replay is under way",
        "Another replay runs. Send it again when that one has ended.",
    ),
    problem(413, "body-too-large", "Body too large", "The body is larger than the limit."),
    problem(
        415,
        "unsupported-media-type",
        "Unsupported media type",
        "The body is not `application/json`, or it is compressed.",
    ),
    problem(
        422,
        "idempotency-key-reused",
        "The Idempotency-Key was used for another order",
        "The user sent the key before with an order of other fields. Use a new key.",
    ),
    problem(
        500,
        "internal",
        "Internal error",
        "The producer has a bug. Its log has the cause under the `X-Request-Id` of the response.",
    ),
    problem(
        500,
        "refused",
        "The database refuses the order",
        "The shard's database refuses this order. Nothing was stored, and sending it again does not help.",
    ),
    problem(
        501,
        "not-implemented",
        "Not implemented",
        "The dead-letter topic has more than one partition, which the API does not support.",
    ),
    problem(503, "kafka-unavailable", "Kafka is down", "Kafka is down. `/readyz` of the producer has the cause."),
    problem(503, "no-answer-in-time", "No answer in time", "The operation did not end within its deadline."),
    problem(503, "not-accepted", "The order was not accepted", "Nothing was stored. Send the order again."),
    problem(
        503,
        "outcome-unknown",
        "The order's outcome is unknown",
        "The shard did not answer in time. Look `order_id` up, or send the order again with the same `Idempotency-Key`.",
    ),
    problem(
        503,
        "overloaded",
        "Overloaded",
        "Too many large lists and bodies are in flight. Ask for a smaller page, or try again later.",
    ),
    problem(503, "s3-unavailable", "S3 is down", "S3 is down, so the receipt cannot be read."),
    ProblemType {
        title: None,
        ..problem(503, "shard-unavailable", "", "A shard is down or could not answer; `unavailable_shards` names it.")
    },
    problem(503, "too-many-feeds", "Too many feeds", "As many feeds are open as the producer serves."),
    problem(
        503,
        "too-many-lists",
        "Too many lists",
        "As many lists of dead letters are being read as the producer serves at once.",
    ),
    problem(
        503,
        "too-many-look-ups",
        "Too many look-ups",
        "As many trails are being looked up as the producer serves at once.",
    ),
];

const fn problem(status: u16, name: &'static str, title: &'static str, meaning: &'static str) -> ProblemType {
    ProblemType { name, status, title: Some(title), meaning }
}
