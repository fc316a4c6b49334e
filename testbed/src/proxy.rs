//! A TCP proxy on loopback, for faults of the network. It can cut off its connections, slow them down, leave them
//! without a response, or answer in place of the server.
//!
//! Promises the same port for as long as it lives, and that a change of its [`Link`] takes effect at once, for open
//! connections too. Its clients cannot distinguish it from the network.

use std::{convert::Infallible, net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, StatusCode, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::port;

/// Bytes carried at once.
const CHUNK: usize = 64 * 1024;

/// The longest a connection to the target takes: it is on loopback, and accepts connections even while frozen.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The way a proxy treats its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Open,
    /// Delays each piece of data by this.
    Slow(Duration),
    /// Closes open connections, and new ones at once.
    Cut,
    /// Keeps and accepts connections but drops their data (half-open). They are closed when this ends, since no
    /// protocol can go on in them.
    Swallowing,
    /// Drops only the data of the server: requests arrive, responses do not.
    SwallowingAnswers,
    /// Carries nothing. When this ends all data arrives, however late.
    Stalled,
    /// Answers each HTTP request with this status in place of the server.
    Answering(StatusCode),
}

#[derive(Debug, Clone, Copy)]
struct State {
    link: Link,
    /// The number of times data was lost. No change may be missed, however short it was.
    gaps: u64,
}

/// A running proxy. Dropping it closes all connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Starts a proxy to `target` on loopback. It belongs to the runtime that it is started in.
    pub async fn start(target: u16) -> Result<Self> {
        let port = port::free()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("listen for a proxy")?;
        let (state, watched) = watch::channel(State { link: Link::Open, gaps: 0 });
        let accepting = tokio::spawn(accept(listener, target, watched));
        Ok(Self { port, state, _accepting: AbortOnDropHandle::new(accepting) })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, link: Link) {
        self.state.send_modify(|state| {
            state.gaps += u64::from(matches!(state.link, Link::Swallowing | Link::SwallowingAnswers));
            state.link = link;
        });
    }
}

async fn accept(listener: TcpListener, target: u16, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    connections.spawn(carry(client, target, state.clone()));
                }
                // No file descriptor is left, or the client has gone.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection, from its start to its end.
async fn carry(client: TcpStream, target: u16, mut state: watch::Receiver<State>) {
    let now = *state.borrow_and_update();
    match now.link {
        Link::Cut => return,
        Link::Answering(status) => return answer(client, status, state).await,
        _ => {}
    }
    let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, target));
    let Ok(Ok(server)) = timeout(CONNECT_TIMEOUT, connecting).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // A close of either end closes both: no protocol here goes on in a half-closed connection.
    tokio::select! {
        () = pump(from_client, to_server, state.clone(), Direction::Question) => {}
        () = pump(from_server, to_client, state.clone(), Direction::Answer) => {}
        () = broken(state, now.gaps) => {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Question,
    Answer,
}

/// Carries bytes one way until an end closes.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    direction: Direction,
) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let Ok(length @ 1..) = from.read(&mut chunk).await else { return };
        let Ok(link) = state.wait_for(|state| state.link != Link::Stalled).await.map(|state| state.link) else {
            return;
        };
        match link {
            Link::Slow(delay) => sleep(delay).await,
            Link::Swallowing => continue,
            Link::SwallowingAnswers if direction == Direction::Answer => continue,
            _ => {}
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}

/// Returns when a connection that was opened after so many `gaps` cannot go on.
async fn broken(mut state: watch::Receiver<State>, gaps: u64) {
    let _ = state.wait_for(|now| now.gaps != gaps || matches!(now.link, Link::Cut | Link::Answering(_))).await;
}

/// Answers requests with `status` until the link changes.
async fn answer(client: TcpStream, status: StatusCode, mut state: watch::Receiver<State>) {
    let service = service_fn(async |request: Request<hyper::body::Incoming>| {
        // Read to its end, or the client would see a broken connection instead of the response.
        let _ = request.into_body().collect().await;
        let mut response = Response::new(Empty::<Bytes>::new());
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    });
    tokio::select! {
        _ = http1::Builder::new().serve_connection(TokioIo::new(client), service) => {}
        _ = state.changed() => {}
    }
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;

    use super::*;
    use crate::{eventually, http};

    const SOON: Duration = Duration::from_secs(10);

    /// Starts a server that sends back what it gets.
    async fn echo() -> Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = client.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Ok(port)
    }

    async fn connect(proxy: &Proxy) -> Result<TcpStream> {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await?)
    }

    /// Sends `word` and returns what comes back: nothing when the connection was closed.
    async fn exchange(stream: &mut TcpStream, word: &str) -> Result<String> {
        stream.write_all(word.as_bytes()).await?;
        let mut received = vec![0; word.len()];
        match timeout(SOON, stream.read_exact(&mut received)).await.context("no answer")? {
            Ok(_) => Ok(String::from_utf8(received)?),
            Err(_) => Ok(String::new()),
        }
    }

    #[tokio::test]
    async fn a_cut_closes_open_and_new_connections_until_it_ends() -> Result<()> {
        let proxy = Proxy::start(echo().await?).await?;
        let mut before = connect(&proxy).await?;
        assert_eq!(exchange(&mut before, "before").await?, "before");
        proxy.set(Link::Cut);
        assert_eq!(before.read(&mut [0; 8]).await.unwrap_or(0), 0);
        let mut during = connect(&proxy).await?;
        assert_eq!(during.read(&mut [0; 8]).await.unwrap_or(0), 0);
        proxy.set(Link::Open);
        eventually("the connection to be open", SOON, async || {
            ensure!(exchange(&mut connect(&proxy).await?, "after").await? == "after", "closed");
            Ok(())
        })
        .await
    }

    #[tokio::test]
    async fn stalled_data_arrives_late_and_swallowed_data_never() -> Result<()> {
        let proxy = Proxy::start(echo().await?).await?;
        let mut stream = connect(&proxy).await?;
        assert_eq!(exchange(&mut stream, "first").await?, "first");
        proxy.set(Link::Stalled);
        stream.write_all(b"late").await?;
        proxy.set(Link::Open);
        let mut received = [0; 4];
        stream.read_exact(&mut received).await?;
        assert_eq!(&received, b"late");

        proxy.set(Link::SwallowingAnswers);
        stream.write_all(b"lost").await?;
        proxy.set(Link::Open);
        assert_eq!(stream.read(&mut received).await.unwrap_or(0), 0, "the connection went on with a gap in it");
        Ok(())
    }

    #[tokio::test]
    async fn an_answering_link_responds_without_a_server() -> Result<()> {
        let proxy = Proxy::start(echo().await?).await?;
        proxy.set(Link::Answering(StatusCode::SERVICE_UNAVAILABLE));
        let answer = http::client().put(format!("http://127.0.0.1:{}/x", proxy.port())).body("body").send().await?;
        assert_eq!(answer.status(), 503);
        Ok(())
    }
}
