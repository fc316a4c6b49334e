//! Access to the controls: programs on this machine, and the dashboard's page. Requests of a page of another origin are
//! refused, and not only their responses hidden. So are those of a page whose name resolves to this machine.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::problem;

#[derive(Debug)]
pub(super) struct Guard {
    origins: [HeaderValue; 2],
}

impl Guard {
    /// Creates a guard that admits the dashboard on this port.
    pub(super) fn for_pages_of(port: u16) -> Self {
        let origin =
            |host| HeaderValue::try_from(format!("http://{host}:{port}")).expect("an origin is a header's value");
        Self { origins: ["localhost", "127.0.0.1"].map(origin) }
    }
}

pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if !names_loopback(request.headers()) {
        return problem(StatusCode::FORBIDDEN, "the host must be this machine, as 127.0.0.1 or localhost");
    }
    let Some(origin) = request.headers().get(header::ORIGIN).cloned() else { return next.run(request).await };
    if !guard.origins.contains(&origin) {
        return problem(StatusCode::FORBIDDEN, "only the dashboard's page may use the controls");
    }
    let mut response = if request.method() == Method::OPTIONS {
        let allowed = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, PUT"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "content-type"),
        ];
        (StatusCode::NO_CONTENT, allowed).into_response()
    } else {
        next.run(request).await
    };
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
    response
}

fn names_loopback(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| host.parse::<Authority>().ok());
    host.is_some_and(|host| ["127.0.0.1", "localhost", "[::1]"].contains(&host.host()))
}
