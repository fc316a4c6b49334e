//! One connection: takes the next request, waits until it is due, sends it, and waits for the response.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    order::Request,
    schedule::{Due, Schedule},
    tally::{Outcome, Shared},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest a response takes: longer than any deadline of the API, so that its response is counted.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause after a failed connection, so that a server that is down does not get requests without end.
const PAUSE: Duration = Duration::from_millis(50);

type Connection = SendRequest<Full<Bytes>>;

#[derive(Debug)]
pub(super) struct Worker {
    address: String,
    schedule: Arc<Schedule>,
    requests: Arc<dyn Request>,
    stop: CancellationToken,
    tally: Shared,
}

impl Worker {
    pub(super) fn new(
        address: &str,
        schedule: Arc<Schedule>,
        requests: Arc<dyn Request>,
        stop: CancellationToken,
    ) -> Self {
        Self { address: address.to_owned(), schedule, requests, stop, tally: Shared::new() }
    }

    pub(super) fn tally(&self) -> Shared {
        self.tally.clone()
    }

    /// Runs until the time is over or `stop` is cancelled; waits for the response to a request that was sent.
    pub(super) async fn run(self) {
        let mut connection: Option<Connection> = None;
        while let Some(Some(due)) = self.stop.run_until_cancelled(self.schedule.next()).await {
            let outcome = self.send(&mut connection, due).await;
            self.tally.count(outcome, due.at.elapsed());
            if outcome == Outcome::NotConnected {
                sleep(PAUSE).await;
            }
        }
    }

    async fn send(&self, connection: &mut Option<Connection>, due: Due) -> Outcome {
        // A connection that the server has closed between two requests is replaced, not counted as lost.
        let mut usable = connection.take();
        if let Some(open) = &mut usable
            && open.ready().await.is_err()
        {
            usable = None;
        }
        if usable.is_none() {
            usable = timeout(CONNECT_TIMEOUT, self.connect()).await.ok().and_then(Result::ok);
        }
        let Some(mut open) = usable else {
            return Outcome::NotConnected;
        };
        match timeout(ANSWER_TIMEOUT, self.exchange(&mut open, due.number)).await {
            Ok(Ok(status)) => {
                *connection = Some(open);
                Outcome::Answered(status)
            }
            Ok(Err(_)) => Outcome::ConnectionLost,
            Err(_) => Outcome::TimedOut,
        }
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.address).await.context("connect")?;
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await.context("begin HTTP")?;
        // The task ends with the connection; the failed request sees its error.
        tokio::spawn(driver);
        Ok(connection)
    }

    async fn exchange(&self, connection: &mut Connection, number: u64) -> Result<u16> {
        let mut request = self.requests.make(number);
        request.headers_mut().insert(header::HOST, self.address.parse().context("name the host")?);
        let (head, body) = connection.send_request(request).await.context("send a request")?.into_parts();
        let status = head.status.as_u16();
        // Read to its end, or the connection could not carry the next request.
        self.requests.answered(&body.collect().await.context("read the answer")?.to_bytes());
        Ok(status)
    }
}
