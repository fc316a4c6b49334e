//! Detects that the client of a connection has disconnected before it got its answer.
//!
//! A client may close its side once it has sent its request (`nc -N`, `shutdown(SHUT_WR)`) and still wait for the
//! answer. A client that was killed looks the same: in both cases the server reads the end of the stream. Only sending
//! tells the two apart, because the kernel of a disconnected client answers with a reset. An answer that is ready soon
//! is therefore just sent. If it takes longer, the server first sends `100 Continue`, which every HTTP/1.1 client
//! ignores. On a reset the request is dropped, and an order that still waits in the queue is withdrawn.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Shutdown},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    extract::FromRequestParts,
    http::{Request, Version, request::Parts},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep, sleep_until},
};

/// Longest wait for an answer before the first `100 Continue` to a client that has closed its side. Most answers come
/// sooner.
const GRACE: Duration = Duration::from_millis(100);

/// Interval between two checks of a client that is still connected.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

const ARE_YOU_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A client's connection. The server reads and writes it, and its requests watch it.
#[derive(Clone)]
pub struct Connection(Arc<TcpStream>, IpAddr);

/// The address of the request's client, or of the last proxy before it.
pub struct Peer(pub Option<IpAddr>);

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get::<Connection>().map(|connection| connection.1)))
    }
}

impl Connection {
    pub fn new(stream: TcpStream, peer: IpAddr) -> Self {
        Self(Arc::new(stream), peer)
    }

    /// Waits until the client has disconnected and cannot read the answer to `request`. Drop this future when there is
    /// an answer, before any of it is written.
    pub async fn is_abandoned(&self, request: &Watched) {
        sleep_until(request.began + GRACE).await;
        if self.sends_no_more().await.is_err() {
            return;
        }
        // HTTP/1.0 has no interim responses.
        if request.version < Version::HTTP_11 {
            return std::future::pending().await;
        }
        loop {
            // The server has nothing else to send before it, so there is room, unless the client reads nothing at all.
            if self.0.try_write(ARE_YOU_THERE).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
                return;
            }
            tokio::select! {
                _ = self.0.ready(Interest::ERROR) => return,
                () = sleep(CHECK_INTERVAL) => {}
            }
        }
    }
}

impl Connection {
    /// Waits until the client closes its side. The end of the whole connection is an error.
    pub async fn sends_no_more(&self) -> io::Result<()> {
        // Any byte already belongs to the next request.
        while self.0.peek(&mut [0]).await? > 0 {
            sleep(CHECK_INTERVAL).await;
        }
        Ok(())
    }
}

/// A request in progress.
pub struct Watched {
    began: Instant,
    version: Version,
}

impl Watched {
    pub fn new<B>(request: &Request<B>) -> Self {
        Self { began: Instant::now(), version: request.version() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}
