//! `GET /api/feed`: notifications as server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::{App, problem::Problem};

/// Watch notifications
///
/// Server-sent events: `notification` (JSON, as on the topic of notifications), first the latest ones, then live; `reset`
/// when this stream was too slow and missed some: fetch anew what you show.
#[utoipa::path(
    get, path = "/api/feed", tag = "feed",
    responses(
        (status = 200, body = String, content_type = "text/event-stream", description = "Stays open"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "Too many feeds are open"),
    )
)]
pub async fn get_feed(State(app): State<App>) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let permit = app.feeds.clone().try_acquire_owned().map_err(|_| Problem::too_many_feeds())?;
    let (recent, live) = app.feed.subscribe();
    let open = app.metrics.feeds.clone();
    open.inc();
    let counted = Counted(open);
    let live = BroadcastStream::new(live).map(|received| match received {
        Ok(notification) => notification_event(&notification),
        Err(BroadcastStreamRecvError::Lagged(missed)) => Event::default().event("reset").data(missed.to_string()),
    });
    let recent = stream::iter(recent).map(|notification| notification_event(&notification));
    let events = recent.chain(live).map(Ok).take_until(app.stop.cancelled_owned()).map(move |event| {
        // Held as long as the stream.
        let _ = (&permit, &counted);
        event
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

fn notification_event(notification: &Arc<str>) -> Event {
    Event::default().event("notification").data(&**notification)
}

struct Counted(orderflow_service::prometheus::metrics::gauge::Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
