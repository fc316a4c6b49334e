//! `GET /api/feed`: notifications as server-sent events. A stream is ended by its client, or at once when the process
//! stops.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use utoipa::ToSchema;

use super::{
    app::Shared,
    connection::{Connection, Peer},
    problem::{Problem, declare_responses},
};
use crate::metrics::Counted;

/// Time between two keep-alive comments, shorter than the usual timeouts of proxies.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

// Describes the events in the OpenAPI document only; the feed renders them itself.
/// One server-sent event
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described")]
pub struct FeedEvent {
    event: FeedEventName,
    /// A JSON object
    data: String,
    /// Present in a `frame`, and in a `reset` in place of one
    #[schema(nullable = false)]
    id: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "only described")]
enum FeedEventName {
    Hello,
    Recent,
    Frame,
    Lagged,
    Reset,
}

declare_responses!(GetFeedProblems: TOO_MANY_FEEDS);

/// Watch notifications
///
/// Server-sent events, in this order:
///
/// - `hello`: the `epoch` of this process, `resumed`, the `total` of notifications in the epoch so far, and `history`,
///   unless the stream resumes or the epoch has not begun: the notifications of up to five minutes before, one bin for
///   each second from the Unix second `from` on, each with its count and its `latency` as in a frame.
/// - `recent`: the latest `notifications`, at most 20, as on their topic.
/// - `frame`, at most five a second: the `count` of its notifications, the `total` including them, the latest 20
///   `notifications`, the `latency` from acceptance to notification as pairs of an upper bound in milliseconds (-1:
///   above all bounds) and a count, and the count of each of the `shards`.
///
/// A stream that is opened with the `Last-Event-ID` of a frame goes on right after it. If that is impossible, `reset`
/// gives the reason (`other-replica`, `too-old`, `gap`, `lagged`): fetch again what you show. Before a `reset` for
/// `lagged`, the event `lagged` gives the number that a client `missed` because it read too slowly.
#[utoipa::path(
    get, path = "/api/feed", tag = "feed",
    params(("Last-Event-ID" = Option<String>, Header, description = "Id of the frame after which to go on")),
    responses(
        (status = 200, body = FeedEvent, content_type = "text/event-stream", description = "The stream, which stays open"),
        GetFeedProblems,
    )
)]
pub async fn get_feed(
    State(app): State<Shared>,
    connection: Option<Extension<Connection>>,
    Peer(peer): Peer,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let place = app.feeds.try_take(1, peer).ok_or_else(Problem::too_many_feeds)?;
    let counted = Counted::new(&app.metrics.feeds);
    // An id that is no text is treated like one that cannot be parsed.
    let last_event_id = headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default());
    let stream = app.feed.stream(last_event_id);
    let events = stream::unfold(stream, async |mut stream| {
        let event = tokio::time::timeout(KEEP_ALIVE, stream.next()).await;
        Some((event.unwrap_or(Bytes::from_static(b": keep-alive\n\n")), stream))
    });
    let stop = app.stop.clone();
    // A client that closes its side of an endless stream no longer reads it.
    let ended = async move {
        match connection {
            Some(Extension(connection)) => {
                tokio::select! {
                    _ = connection.sends_no_more() => {}
                    () = stop.cancelled() => {}
                }
            }
            None => stop.cancelled().await,
        }
    };
    let events = events.take_until(Box::pin(ended)).map(move |event| {
        // Held as long as the stream.
        let _ = (&place, &counted);
        Ok::<_, Infallible>(event)
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // nginx would gather events until its buffer is full.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}
