//! The dashboard: static files embedded in the binary, under a policy that lets a page run nothing but them. Each visit
//! fetches them again, so they are compressed for browsers that accept it: 60 kB instead of 150.

use anyhow::Context;
use axum::{
    Router,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderName, HeaderValue, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use include_dir::{Dir, include_dir};
use tower_http::compression::CompressionLayer;

use super::{app::Shared, connection::Peer, problem::Problem};

/// Bytes that the compressor of one response holds until the response is read.
const COMPRESSOR: usize = 384 * 1024;

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/dashboard");

/// Returns the routes of the dashboard. `controls` is the only other origin that the page may call.
pub fn routes(app: &Shared, controls: Option<&str>) -> anyhow::Result<Router<Shared>> {
    let connect = controls.map_or("'self'".to_owned(), |origin| format!("'self' {origin}"));
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src {connect}; base-uri 'none'; \
         form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    );
    let policy = HeaderValue::try_from(policy).context("put CONTROLS_URL into the page's policy")?;
    let page = {
        let policy = policy.clone();
        move || async move { file("index.html", policy) }
    };
    let named = move |name: Result<Path<String>, PathRejection>| async move {
        match name {
            Ok(Path(name)) => file(&name, policy),
            Err(_) => Problem::not_found("there is no file of that name").into_response(),
        }
    };
    let files = Router::new().route("/", get(page)).route("/dashboard/{name}", get(named));
    // Only these routes: a compressor would delay the feed, and the API's responses are small.
    let files = files.route_layer(CompressionLayer::new());
    Ok(files.route_layer(middleware::from_fn_with_state(app.clone(), accounted)))
}

async fn accounted(State(app): State<Shared>, Peer(peer): Peer, request: Request, next: Next) -> Response {
    match app.memory.reserve(COMPRESSOR, peer).await {
        Ok(memory) => memory.carry(next.run(request).await),
        Err(overloaded) => overloaded.into_response(),
    }
}

fn file(name: &str, policy: HeaderValue) -> Response {
    let Some(file) = FILES.get_file(name) else {
        return Problem::not_found(format!("there is no file {name}")).into_response();
    };
    let content_type = match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
        // The files change with the binary: a request for each is better than a page that mixes two versions.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, file.contents()).into_response()
}
