//! Accepts connections and serves them: bounded in number and memory, with a deadline for a request's head, and ended
//! gracefully.

use std::time::Duration;

use axum::{Router, http::Request, response::Response};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use orderflow_service::{
    prometheus::metrics::{counter::Counter, gauge::Gauge},
    shutdown::CancellationToken,
};
use socket2::SockRef;
use tokio::net::TcpListener;

use super::connection::{Connection, Watched};
use crate::{metrics::Counted, quota::Quota};

/// Longest wait for the head of a request; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a response that a connection holds while its client does not read, since only the ring may hold the feed.
/// It is also the longest head of a request. Every connection may hold as much in each direction.
const BUFFER: usize = 16 * 1024;

/// Longest time for which a client may leave data unread, or unacknowledged, before its connection ends.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);

/// The response to a client whose address already has its share of the connections.
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Bounds the connections. Listeners that share one have one bound.
#[derive(Clone)]
pub struct Connections {
    pub places: Quota,
    pub open: Gauge,
    pub refused: Counter,
}

/// Serves until `stop`, then lets requests in flight end for at most `drain`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    bound: Connections,
    stop: CancellationToken,
    drain: Duration,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER).half_close(true);
    let connections = GracefulShutdown::new();
    loop {
        let accepted = async {
            // First a place, then a connection: further connections wait in the kernel's queue.
            let place = bound.places.next().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip()),
            Err(error) => {
                // Out of file descriptors, or closed before it was accepted: no reason to end, nor to spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = bound.places.hold(place, peer) else {
            tracing::debug!(%peer, "refused a connection: its address has its share");
            bound.refused.inc();
            let _ = stream.try_write(REFUSAL);
            continue;
        };
        // An answer is one small segment; waiting for more would only delay it.
        let _ = stream.set_nodelay(true);
        let socket = SockRef::from(&stream);
        let _ = socket.set_tcp_user_timeout(Some(UNREAD_TIMEOUT));
        // Otherwise the kernel holds megabytes that a client does not read, and they count as the pod's memory.
        let _ = socket.set_tcp_notsent_lowat(BUFFER as u32);
        let stream = Connection::new(stream, peer);
        let service = answer(router.clone(), stream.clone());
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
        let open = Counted::new(&bound.open);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop((place, open));
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, connections.shutdown()).await.is_err() {
        tracing::warn!("some requests had not ended {} s after the signal", drain.as_secs());
    }
}

/// Answers the requests of a connection. Drops a request whose client has disconnected.
fn answer(
    router: Router,
    connection: Connection,
) -> impl Service<Request<Incoming>, Response = Response, Error = Abandoned, Future: Send> {
    let router = TowerToHyperService::new(router);
    service_fn(move |mut request: Request<Incoming>| {
        let (connection, watched) = (connection.clone(), Watched::new(&request));
        request.extensions_mut().insert(connection.clone());
        let answered = router.call(request);
        async move {
            tokio::select! {
                biased;
                answered = answered => Ok(answered.unwrap_or_else(|never| match never {})),
                () = connection.is_abandoned(&watched) => {
                    tracing::debug!("the client has disconnected: its request is dropped");
                    Err(Abandoned)
                }
            }
        }
    })
}

/// Ends the connection of a client that has disconnected.
#[derive(Debug, thiserror::Error)]
#[error("the client has disconnected")]
struct Abandoned;
