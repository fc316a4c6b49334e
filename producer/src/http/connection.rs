//! A client's connection, and whether somebody is still there to read an answer.
//!
//! A client may end its own side once it has sent its request (`nc -N`, `shutdown(SHUT_WR)`) and still wait for the answer. A
//! client that was killed looks the same from here: both send the end of their stream, and only what is sent to them tells
//! the two apart, since to the one that is gone its kernel answers with a reset. So an answer that is soon ready is simply
//! sent. A request that waits longer is told `100 Continue`, which every client of HTTP/1.1 passes over, and is dropped if
//! nobody is there to get it: an order that still waits is then withdrawn.

use std::{
    io,
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::{Request, Version};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep, sleep_until},
};

/// Longest wait for an answer before a client whose side has ended is asked whether it is there. Most answers come sooner.
const GRACE: Duration = Duration::from_millis(100);

/// How often one is asked that was there.
const AGAIN: Duration = Duration::from_secs(1);

const ARE_YOU_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Shared by the server, which reads and writes it, and by the requests on it, which watch it.
#[derive(Clone)]
pub struct Connection(Arc<TcpStream>);

impl Connection {
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// Waits until nobody is there any more to read the answer to `request`. To be dropped when there is an answer, and before
    /// any of it is written.
    pub async fn is_abandoned(&self, request: &Watched) {
        sleep_until(request.began + GRACE).await;
        if self.sends_no_more().await.is_err() {
            return;
        }
        // A client of HTTP/1.0 knows no answer but the last one.
        if request.version < Version::HTTP_11 {
            return std::future::pending().await;
        }
        loop {
            // Nothing of ours waits to be sent before it, so there is room, unless the client reads nothing at all.
            if self.0.try_write(ARE_YOU_THERE).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
                return;
            }
            tokio::select! {
                _ = self.0.ready(Interest::ERROR) => return,
                () = sleep(AGAIN) => {}
            }
        }
    }
}

impl Connection {
    /// Waits for the end of what the client sends, or for the end of the connection, which is an error.
    pub async fn sends_no_more(&self) -> io::Result<()> {
        // More than nothing is the next request already.
        while self.0.peek(&mut [0]).await? > 0 {
            sleep(AGAIN).await;
        }
        Ok(())
    }
}

/// A request that is being worked on.
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
