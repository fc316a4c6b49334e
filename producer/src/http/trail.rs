//! `GET /api/orders/{id}/trail`: the trail of an order, with the state and time of each step.

use axum::{Json, extract::State};
use futures_util::future::join;
use orderflow_core::Timestamp;
use orderflow_service::traces;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    app::{App, Shared},
    connection::Peer,
    orders,
    parameter::IdOfPath,
    problem::{Problem, declare_responses},
    view::{MISSING, OrderView, PENDING, STORED, receipt_status},
};
use crate::{
    shard::StoredOrder,
    trail::{EventState, Published},
};

const WAITING: &str = "waiting";
const UNKNOWN: &str = "unknown";

#[derive(Serialize, ToSchema)]
pub struct TrailView {
    order: OrderView,
    #[schema(example = "shard1")]
    shard: String,
    accepted: Accepted,
    stored: Stored,
    receipt: Receipt,
    published: Publication,
    notified: Notified,
    /// Id of its trace; null if it was not recorded, its event is no longer in Kafka, or this producer knows of no traces
    #[schema(example = "0af7651916cd43dd8448eb211c80319c")]
    trace_id: Option<String>,
    /// Records that were searched, if a state is unknown
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct Accepted {
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

#[derive(Serialize, ToSchema)]
struct Stored {
    shard: String,
}

#[derive(Serialize, ToSchema)]
struct Receipt {
    /// `pending`, `stored`, `missing` or `unknown` (S3 is down)
    #[schema(example = "stored")]
    state: &'static str,
    /// Time at which S3 stored it
    #[schema(value_type = Option<String>, format = DateTime)]
    at: Option<Timestamp>,
    /// Tries so far, while it is pending
    attempts: Option<i32>,
}

#[derive(Serialize, ToSchema)]
struct Publication {
    /// `waiting`, `published`, `dead` (Kafka refused it for good) or `unknown`
    #[schema(example = "published")]
    state: &'static str,
    #[schema(value_type = Option<String>, format = DateTime)]
    at: Option<Timestamp>,
    partition: Option<i32>,
    offset: Option<i64>,
}

#[derive(Serialize, ToSchema)]
struct Notified {
    /// `waiting`, `notified` or `unknown`
    #[schema(example = "notified")]
    state: &'static str,
    #[schema(value_type = Option<String>, format = DateTime)]
    at: Option<Timestamp>,
}

declare_responses!(GetTrailProblems: NOT_FOUND, SHARD_UNAVAILABLE, TOO_MANY_LOOK_UPS);

/// Get the trail of an order
#[utoipa::path(
    get, path = "/api/orders/{id}/trail", tag = "orders",
    params(("id" = uuid::Uuid, Path, description = "The order's UUID")),
    responses(
        (status = 200, body = TrailView, description = "The trail"),
        GetTrailProblems,
    )
)]
pub async fn get_trail(
    State(app): State<Shared>,
    Peer(peer): Peer,
    IdOfPath(id): IdOfPath,
) -> Result<Json<TrailView>, Problem> {
    let place = app.trails.begin(peer).ok_or_else(Problem::too_many_look_ups)?;
    let (stored, shard) = orders::find(&app, id).await?;
    let queued = shard.queued(id).await.ok();
    let attempts = queued.as_ref().and_then(|queued| queued.receipt_attempts);
    let (trails, order) = (app.trails.clone(), stored.order.clone());
    let shows_trace = traces::is_on() || app.config.links_to_traces();
    // A task of its own: if the client disconnects, the search in Kafka goes on and keeps its place until it ends.
    let event = tokio::spawn(async move {
        let _place = place;
        let traceparent = queued.as_ref().and_then(|queued| queued.traceparent.clone());
        let event = trails.follow(&order, queued).await;
        let traceparent = match (&event, traceparent) {
            // Without traces nobody asks, and Kafka need not answer.
            _ if !shows_trace => None,
            (_, Some(stored)) => Some(stored),
            (EventState::Published(published) | EventState::Notified(published, _), None) => {
                trails.traceparent(published).await
            }
            _ => None,
        };
        (event, traceparent)
    });
    let (receipt, event) = join(receipt(&app, &stored, attempts), event).await;
    let (event, traceparent) = event.map_err(|_| Problem::internal())?;
    let trace = traceparent.and_then(|text| traces::parse(&text)).filter(traces::SpanContext::is_sampled);
    let (published, notified, note) = steps(event);
    let shard = shard.name().to_owned();
    Ok(Json(TrailView {
        accepted: Accepted { at: stored.order.created_at },
        order: OrderView::new(stored.order, receipt_status(stored.receipt_pending)),
        stored: Stored { shard: shard.clone() },
        shard,
        receipt,
        published,
        notified,
        trace_id: trace.map(|trace| trace.trace_id().to_string()),
        note,
    }))
}

async fn receipt(app: &App, stored: &StoredOrder, attempts: Option<i32>) -> Receipt {
    if stored.receipt_pending {
        return Receipt { state: PENDING, at: None, attempts };
    }
    let head = app.s3.head_object().bucket(&*app.bucket).key(&stored.order.receipt_s3_key).send().await;
    let (state, at) = match head {
        Ok(object) => {
            let at =
                object.last_modified().and_then(|at| Timestamp::from_unix_microseconds((at.as_nanos() / 1000) as i64));
            (STORED, at)
        }
        Err(error) if error.raw_response().is_some_and(|response| response.status().as_u16() == 404) => (MISSING, None),
        Err(_) => (UNKNOWN, None),
    };
    Receipt { state, at, attempts: None }
}

fn steps(event: EventState) -> (Publication, Notified, Option<String>) {
    let nowhere = |state, at| Publication { state, at, partition: None, offset: None };
    let there = |published: &Published| Publication {
        state: "published",
        at: Some(published.at),
        partition: Some(published.partition),
        offset: Some(published.offset),
    };
    let not_yet = |state| Notified { state, at: None };
    match event {
        EventState::Waiting => (nowhere(WAITING, None), not_yet(WAITING), None),
        EventState::Refused(since) => (nowhere("dead", Some(since)), not_yet(WAITING), None),
        EventState::Published(published) => {
            let notified = if published.note.is_some() { UNKNOWN } else { WAITING };
            (there(&published), not_yet(notified), published.note)
        }
        EventState::Notified(published, at) => (there(&published), Notified { state: "notified", at: Some(at) }, None),
        EventState::Unknown(note) => (nowhere(UNKNOWN, None), not_yet(UNKNOWN), Some(note)),
    }
}
