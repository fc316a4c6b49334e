//! The span of a request. Its context replaces the client's in the request's headers, so that what the handler stores
//! with an order continues this span.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode},
};
use orderflow_service::traces::{self, Builder, KeyValue, Span};

/// The label of all methods that are not well known.
pub const OTHER_METHOD: &str = "other";

/// The most characters of a path in a span; a client chooses it.
const LONGEST_PATH: usize = 200;

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Starts the span of a request. `None` if traces are off.
pub fn start(request: &mut Request, method: &str, route: &str) -> Option<Span> {
    if !traces::is_on() {
        return None;
    }
    let client = request.headers().get(TRACEPARENT).and_then(|value| traces::parse(value.to_str().ok()?));
    // A method can be any word, and each name of a span costs the collector memory.
    let (method, start) = if method == OTHER_METHOD { ("_OTHER", "HTTP") } else { (method, method) };
    let name = if route == "none" { start.to_owned() } else { format!("{start} {route}") };
    let mut span = Builder::of_request(name, client).start()?;
    // What the client sent goes on with the order, unless this span is to be found.
    if span.is_recorded() {
        span.set([
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("url.path", request.uri().path().chars().take(LONGEST_PATH).collect::<String>()),
            KeyValue::new("url.scheme", "http"),
        ]);
        let context = HeaderValue::try_from(traces::format(span.context())).ok()?;
        request.headers_mut().insert(TRACEPARENT, context);
    }
    Some(span)
}

/// Ends the span with the response's status.
pub fn end(mut span: Span, status: StatusCode) {
    if !span.is_recorded() {
        return;
    }
    span.set([KeyValue::new("http.response.status_code", i64::from(status.as_u16()))]);
    // A client's mistake is no failure of the server.
    if status.is_server_error() {
        span.fail("5xx", status.to_string());
    }
}
