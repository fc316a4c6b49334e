//! Reading a request's body: bounded in size and time, and polite to a client that sends too much.

use std::{net::IpAddr, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::{memory::Memory, problem::Problem};

/// Largest body of an order.
pub const LIMIT: usize = 64 * 1024;

/// Largest body whose memory is not reserved. Orders are smaller, so they are accepted however many large
/// bodies there are.
const SMALL: usize = 4 * 1024;

/// Bytes that are read of a body that is too large: a client that is cut off while it sends never sees the response.
const POLITE_LIMIT: usize = 16 * 1024 * 1024;

/// Longest wait for a complete body.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// The byte order mark (U+FEFF) in UTF-8, which some clients on Windows send. RFC 8259 forbids it, and a parser would
/// report only that it expected a value.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Requires an uncompressed body of type `application/json`, with or without parameters.
pub fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    if let Some(encoding) = encodings.find(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Problem::unsupported_encoding(encoding.to_str().unwrap_or("with non-ASCII characters")));
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(Problem::unsupported_media_type()) }
}

/// Reads the whole body, at most [`LIMIT`] bytes. Refuses a byte order mark, which is not JSON.
pub async fn read(body: Body, memory: &Memory, client: Option<IpAddr>) -> Result<Bytes, Problem> {
    let body = read_bytes(body, memory, client).await?;
    if body.starts_with(BYTE_ORDER_MARK) {
        return Err(Problem::malformed("the body must not begin with a byte order mark (U+FEFF)"));
    }
    Ok(body)
}

async fn read_bytes(body: Body, memory: &Memory, client: Option<IpAddr>) -> Result<Bytes, Problem> {
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = body.into_data_stream();
    let mut kept: Vec<u8> = Vec::new();
    let mut seen = 0;
    // Set once the body is large: the memory for it, or the problem to return when it has been read to its end.
    let mut reserved = None;
    loop {
        match timeout_at(deadline, stream.next()).await {
            Err(_) => return Err(Problem::body_too_slow()),
            Ok(Some(Err(_))) => return Err(Problem::body_broken()),
            Ok(Some(Ok(chunk))) if seen == 0 && chunk.len() <= LIMIT && stream_is_done(&stream) => return Ok(chunk),
            Ok(Some(Ok(chunk))) => {
                seen += chunk.len();
                if seen > SMALL && reserved.is_none() {
                    reserved = Some(memory.try_reserve(LIMIT, client));
                }
                if seen > LIMIT || matches!(reserved, Some(Err(_))) {
                    kept = Vec::new();
                } else {
                    kept.extend_from_slice(&chunk);
                }
                if seen > POLITE_LIMIT {
                    return Err(Problem::body_too_large(LIMIT));
                }
            }
            Ok(None) if seen > LIMIT => return Err(Problem::body_too_large(LIMIT)),
            Ok(None) => return reserved.transpose().map(|_| kept.into()),
        }
    }
}

fn stream_is_done(stream: &axum::body::BodyDataStream) -> bool {
    axum::body::HttpBody::is_end_stream(stream)
}
