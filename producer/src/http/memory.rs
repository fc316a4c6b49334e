//! Accounts the memory of large bodies in flight: lists that are made or that their clients have not read yet, and
//! requests that arrive slowly. Small bodies are bounded by the number of connections.

use std::{
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    response::{IntoResponse, Response},
};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

use super::problem::Problem;
use crate::quota::{Held, Quota};

const UNIT: usize = 1024;

/// The memory that one address may always have: the most that a single request needs.
const LEAST: usize = 4 * 1024 * 1024;

/// The longest wait for memory. Most lists need theirs for milliseconds.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The bytes of a body that a connection gets at once. Each piece is a copy, so that the body is freed while its last
/// piece is still being read.
const PIECE: usize = 16 * 1024;

/// The time in which a client must have read a body that is accounted.
const READING: Duration = Duration::from_secs(60);

/// The memory for all such bodies.
pub struct Memory(Quota);

/// Memory for one body.
pub struct Reserved(Held);

impl Memory {
    pub fn new(mebibytes: usize, share: u8) -> Self {
        Self(Quota::with_least(mebibytes * 1024 * 1024 / UNIT, share, LEAST / UNIT))
    }

    /// Reserves memory for a response, before any of it is made.
    pub async fn reserve(&self, bytes: usize, client: Option<IpAddr>) -> Result<Reserved, Problem> {
        self.0.take(units(bytes) as u32, client, MAX_WAIT).await.map(Reserved).ok_or_else(Problem::overloaded)
    }

    /// Reserves memory for a request that arrives, without waiting.
    pub fn try_reserve(&self, bytes: usize, client: Option<IpAddr>) -> Result<Reserved, Problem> {
        self.0.try_take(units(bytes) as u32, client).map(Reserved).ok_or_else(Problem::overloaded)
    }
}

impl Reserved {
    /// Holds what the response needs of this memory until its client has read it, and gives back the rest.
    pub fn carry(mut self, response: impl IntoResponse) -> Response {
        response.into_response().map(|body| {
            if let Some(bytes) = body.size_hint().exact() {
                self.0.shrink_to(units(bytes as usize));
            }
            Body::new(Accounted { body, rest: Bytes::new(), deadline: Instant::now() + READING, _reserved: self })
        })
    }
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

/// A response's body, in pieces.
struct Accounted {
    body: Body,
    /// Holds what is unsent of the last frame of `body`.
    rest: Bytes,
    deadline: Instant,
    _reserved: Reserved,
}

/// Ends the connection of a client that reads too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the client has not read the response within {} s", READING.as_secs())]
struct ReadTooSlowly;

impl HttpBody for Accounted {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        if Instant::now() > self.deadline {
            return Poll::Ready(Some(Err(ReadTooSlowly.into())));
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
        let length = self.rest.len().min(PIECE);
        let piece = Bytes::copy_from_slice(&self.rest.split_to(length));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    const MIB: usize = 1024 * 1024;

    async fn is_refused(memory: &Memory, bytes: usize) -> bool {
        memory.reserve(bytes, None).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_holds_its_own_size_until_it_is_read() {
        let memory = Memory::new(8, 100);
        let text: String = (0..MIB).map(|number| char::from(b'a' + (number / PIECE % 26) as u8)).collect();
        let response = memory.reserve(7 * MIB, None).await.unwrap().carry(text.clone());
        assert_eq!(response.body().size_hint().exact(), Some(MIB as u64));
        assert!(is_refused(&memory, 7 * MIB + 1).await);
        assert!(!is_refused(&memory, 7 * MIB).await);
        let mut pieces = response.into_body().into_data_stream();
        let mut read = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.unwrap();
            assert!(piece.len() <= PIECE);
            read.extend_from_slice(&piece);
        }
        assert_eq!(read, text.into_bytes());
        drop(pieces);
        assert!(!is_refused(&memory, 8 * MIB).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_too_slowly_is_cut_off() {
        let memory = Memory::new(8, 100);
        let response = memory.reserve(MIB, None).await.unwrap().carry("x".repeat(MIB));
        let mut pieces = response.into_body().into_data_stream();
        assert!(pieces.next().await.unwrap().is_ok());
        tokio::time::advance(READING + Duration::from_secs(1)).await;
        assert!(pieces.next().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_a_small_share_can_still_have_the_largest_list() {
        let memory = Memory::new(8, 1);
        let client = Some("10.0.0.1".parse().unwrap());
        let held = memory.reserve(LEAST, client).await;
        assert!(held.is_ok());
        assert!(memory.try_reserve(1, client).is_err());
    }
}
