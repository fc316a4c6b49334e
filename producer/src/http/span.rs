//! The span of a request. Its context replaces the client's in the request's headers, so that what the handler stores
//! with an order continues this span.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, Method, StatusCode},
};
use orderflow_service::traces::{self, Builder, KeyValue, Span};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Starts the span of a request. `None` if traces are off.
pub fn start(request: &mut Request, method: &Method, route: &str) -> Option<Span> {
    if !traces::is_on() {
        return None;
    }
    let client = request.headers().get(TRACEPARENT).and_then(|value| traces::parse(value.to_str().ok()?));
    let name = if route == "none" { method.to_string() } else { format!("{method} {route}") };
    let mut span = Builder::of_request(name, client).start()?;
    if span.is_recorded() {
        span.set([
            KeyValue::new("http.request.method", method.to_string()),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("url.path", request.uri().path().to_owned()),
            KeyValue::new("url.scheme", "http"),
        ]);
    }
    let context = HeaderValue::try_from(traces::format(span.context())).ok()?;
    request.headers_mut().insert(TRACEPARENT, context);
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
