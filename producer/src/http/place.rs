//! `POST /api/orders`: places an order.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use orderflow_core::{IdempotencyKey, MapEpoch, NewOrder, Order, Shard};
use orderflow_service::{failpoint, traces};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    app::{App, Shared},
    body,
    connection::Peer,
    problem::{Problem, declare_responses},
    span::TRACEPARENT,
    view::{OrderView, PENDING},
};
use crate::{
    metrics::{OrderOutcome, OutcomeLabel},
    shard::{PlaceError, Placed},
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

// Parsed by hand, for exact money and errors that name the field.
/// An order to place. Unknown fields are ignored.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described")]
pub struct NewOrderBody {
    /// The user who orders; the first character chooses the shard. No control characters.
    #[schema(example = "alice", min_length = 1, max_length = 100, pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$")]
    user_id: String,
    /// No control characters.
    #[schema(
        example = "Mechanical Keyboard",
        min_length = 1,
        max_length = 255,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    product_name: String,
    /// Price × quantity must be at most 10000000000000.
    #[schema(example = 2, minimum = 1, maximum = 2_147_483_647)]
    quantity: i32,
    /// Unit price. Only its exact value counts: 149.99, 149.9900 and 1.4999E2 are equal, and 149.991 is invalid.
    #[schema(example = 149.99, minimum = 0.01, maximum = 99_999_999.99, multiple_of = 0.01)]
    price: f64,
}

#[derive(Serialize, ToSchema)]
pub struct PlacedOrder {
    order: OrderView,
    #[schema(example = "shard1")]
    shard: String,
    #[schema(example = "shard1 (A-M)")]
    shard_info: String,
    /// Key of the receipt in the bucket
    #[schema(example = "receipts/alice/01890a5d-ac96-774b-bcce-b302099a8057.txt")]
    receipt: String,
}

declare_responses!(PlaceOrderProblems: MALFORMED, INVALID_ORDER, BODY_TOO_SLOW, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, IDEMPOTENCY_KEY_REUSED, REFUSED, NOT_ACCEPTED, OUTCOME_UNKNOWN, OVERLOADED);

/// Place an order
///
/// Answered 201 once the order is committed on its user's shard; its receipt, event and notification follow.
#[utoipa::path(
    post, path = "/api/orders", tag = "orders", request_body = NewOrderBody,
    params(
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, pattern = r#"^([!#-~]([ -~]{0,253}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,255}")$"#,
         description = "1–255 visible ASCII characters, bare or quoted, of this user. The same key with the same fields is \
                        the same order for at least 24 h."),
        ("traceparent" = Option<String>, Header, description = "W3C trace context, passed on with the event"),
    ),
    responses(
        (status = 201, body = PlacedOrder, description = "The order is stored",
         headers(("Idempotency-Replayed" = bool, description = "true if this repeats the first reply"))),
        PlaceOrderProblems,
    )
)]
pub async fn place_order(
    State(app): State<Shared>,
    Peer(peer): Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let count = |outcome| {
        app.metrics.orders.get_or_create(&OutcomeLabel { outcome }).inc();
    };
    let read = async {
        body::require_json(&headers)?;
        let body = body::read(body, &app.memory, peer).await?;
        let key = idempotency_key(&headers)?;
        Ok::<_, Problem>((NewOrder::parse(&body)?, key))
    };
    let (new, key) = read.await.inspect_err(|_| count(OrderOutcome::invalid))?;
    failpoint::panics("http::place", new.user_id.as_str());
    let routes = app.maps.routes();
    let shard = routes.shard_of(&new.user_id);
    let placed = match app.shards.numbered(shard.number) {
        Some(shard) => shard.place(new, key, traceparent(&headers), &routes).await,
        None => Err(PlaceError::NotAccepted(format!("{} is in a newer shard map, and not in SHARDS here", shard.name))),
    };
    match placed {
        Ok(Placed::Created(order, epoch)) => {
            count(OrderOutcome::created);
            Ok(created(&app, order, epoch).into_response())
        }
        Ok(Placed::Replayed(order, epoch)) => {
            count(OrderOutcome::replayed);
            let mut response = created(&app, order, epoch).into_response();
            response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Err(error) => {
            count(match &error {
                PlaceError::NotAccepted(_) | PlaceError::QueueFull(_) | PlaceError::Moved => OrderOutcome::not_accepted,
                PlaceError::OutcomeUnknown(_) => OrderOutcome::outcome_unknown,
                PlaceError::KeyReused => OrderOutcome::key_reused,
                PlaceError::Refused(_) => OrderOutcome::refused,
            });
            Err(error.into())
        }
    }
}

/// Returns the first reply, also when it is repeated: at that time the receipt was still to be written, and the user's
/// shard was that of the order's epoch.
fn created(app: &App, order: Order, epoch: MapEpoch) -> (StatusCode, Json<PlacedOrder>) {
    let describe = |shard: &Shard| (shard.name.clone(), shard.info());
    let shard = app.maps.of(epoch, |map| describe(map.shard_of(&order.user_id)));
    let (shard, shard_info) = shard.unwrap_or_else(|| describe(app.maps.routes().shard_of(&order.user_id)));
    let reply =
        PlacedOrder { shard, shard_info, receipt: order.receipt_s3_key.clone(), order: OrderView::new(order, PENDING) };
    (StatusCode::CREATED, Json(reply))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refused = |rule: &str| Problem::invalid_parameter("Idempotency-Key", rule);
    if values.next().is_some() {
        return Err(refused("must appear only once"));
    }
    IdempotencyKey::parse(value.as_bytes()).map(Some).map_err(refused)
}

/// Returns a trace context of version 00, which is passed on; any other is dropped.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(TRACEPARENT)?.to_str().ok()?;
    traces::parse(value).map(|_| value.to_owned())
}
