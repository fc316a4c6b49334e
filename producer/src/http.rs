//! The API's routes, the layers that every request passes, and the OpenAPI document, which is made from the same code.
//! A single port serves all routes; with two, the public port serves the routes that clients need, and the internal
//! port all.

mod app;
mod body;
mod config;
mod connection;
mod cursor;
mod dashboard;
mod dead_letters;
mod feed;
mod known_names;
mod memory;
mod orders;
mod page_config;
mod parameter;
mod place;
mod problem;
mod progress;
mod receipt;
mod reference;
pub mod server;
mod span;
mod stats;
mod trail;
mod view;

use std::time::{Duration, Instant};

use anyhow::Context;
use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use orderflow_service::traces;
use serde::Serialize;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Settings,
    metrics::{Counted, Metrics, RequestLabels, RouteLabels},
};
pub use app::{App, Exposure, Shared};
pub use known_names::KnownNames;
pub use memory::Memory;
pub use page_config::Config;
pub use problem::kind::{ALL as PROBLEM_KINDS, Kind as ProblemKind};
use problem::{ByClients, Cause, Problem, declare_responses};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(OpenApi)]
#[openapi(
    components(schemas(Problem)),
    info(
        title = "OrderFlow",
        description = "Places orders on their users' shards. An order that was answered 201 is stored once, has one receipt, \
                   one event and exactly one notification.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    )
)]
struct Document;

/// The OpenAPI document of this build.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes(Exposure::Internal).into_openapi()
}

/// Returns the OpenAPI document of the port that serves clients alone.
pub fn public_openapi() -> utoipa::openapi::OpenApi {
    routes(Exposure::Public).into_openapi()
}

/// Returns the longest time for a request. It exceeds the deadlines of all sources together, so that the answer comes from
/// a source unless one hangs.
pub fn deadline(settings: &Settings) -> Duration {
    /// Time that a request may take beyond the deadlines of its sources.
    const MARGIN: Duration = Duration::from_secs(15);
    body::TIMEOUT + settings.order_timeout().max(settings.s3.timeout()) + MARGIN
}

pub fn router(app: Shared, settings: &Settings, exposure: Exposure) -> anyhow::Result<Router> {
    let cors_origins = &settings.cors_allow_origin;
    let (api, document) = routes(exposure).split_for_parts();
    // All readers share these bytes, however slowly they read.
    let document = Bytes::from(document.to_json().context("encode the OpenAPI document")?);
    let openapi = move || async move { ([(header::CONTENT_TYPE, "application/json")], document) };
    let metrics = app.metrics.clone();
    let dashboard = match exposure {
        Exposure::Public => Router::new(),
        Exposure::Internal => dashboard::routes(&app, settings.controls_url.as_deref())?.merge(reference::routes()),
    };
    let router = api
        .route_layer(middleware::from_fn_with_state(app.clone(), parameter::read_query))
        .route("/openapi.json", get(openapi))
        .merge(dashboard)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(app.clone())
        .layer(Extension(exposure))
        .layer(middleware::from_fn_with_state(app, within_deadline))
        .layer(CatchPanicLayer::custom(|_| Problem::internal().into_response()))
        .layer(middleware::from_fn_with_state(metrics, observe));
    // Even a layer that allows nothing would answer every OPTIONS with 200.
    Ok(if cors_origins.is_empty() { router } else { router.layer(cors(cors_origins)?) })
}

fn routes(exposure: Exposure) -> OpenApiRouter<Shared> {
    let public = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health))
        .routes(routes!(place::place_order, orders::list_orders))
        .routes(routes!(orders::get_order))
        .routes(routes!(receipt::get_receipt));
    if exposure == Exposure::Public {
        return public;
    }
    public
        .routes(routes!(trail::get_trail))
        .routes(routes!(stats::list_shards))
        .routes(routes!(stats::get_stats))
        .routes(routes!(feed::get_feed))
        .routes(routes!(config::get_config))
        .routes(routes!(dead_letters::list_dead_letters))
        .routes(routes!(dead_letters::replay_dead_letters))
}

#[derive(Serialize, ToSchema)]
struct Health {
    #[schema(example = "healthy")]
    status: &'static str,
    #[schema(example = "orderflow-producer")]
    service: &'static str,
}

declare_responses!(HealthProblems:);

/// Check that the process is running
///
/// `/readyz` on the admin port shows the state of its dependencies.
#[utoipa::path(
    get, path = "/health", tag = "process",
    responses(
        (status = 200, body = Health, description = "The process is running"),
        HealthProblems,
    )
)]
async fn health() -> Json<Health> {
    Json(Health { status: "healthy", service: "orderflow-producer" })
}

async fn no_such_path(request: Request) -> Problem {
    Problem::not_found(format!("there is no resource at {}", request.uri().path()))
}

async fn no_such_method(method: Method, request: Request) -> Problem {
    Problem::method_not_allowed(format!("{} has no {method}", request.uri().path()))
}

/// Answers 503 at the deadline if the handler has not answered.
async fn within_deadline(State(app): State<Shared>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(app.deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::no_answer_in_time(app.deadline.as_secs()).into_response(),
    }
}

/// Counts each response, adds the request's id, and logs errors of the server (at level `debug` those that clients
/// caused, since they could flood the log). Keeps browsers from guessing content types.
async fn observe(
    State(metrics): State<Metrics>,
    route: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let request_id = request_id(&request);
    let route = route.map_or("none".to_owned(), |route| route.as_str().to_owned());
    let label = method_label(&method);
    let in_flight = RouteLabels { method: label.clone(), route: route.clone() };
    let in_flight = Counted::new(&metrics.requests_in_flight.get_or_create_owned(&in_flight));
    let span = span::start(&mut request, &label, &route);
    let recorded = span.as_ref().filter(|span| span.is_recorded());
    let logged_in = recorded.map(|span| traces::log_context(span.context()));
    let answered = next.run(request);
    let mut response = match &logged_in {
        Some(context) => traces::FutureExt::with_context(answered, context.clone()).await,
        None => answered.await,
    };
    drop(in_flight);
    // The lines below are about this request, too.
    let _logged_in = logged_in.map(traces::Context::attach);
    let status = response.status();
    if status.is_server_error() {
        let (status, request_id) = (status.as_u16(), request_id.to_str().unwrap_or_default());
        let cause = response.extensions().get::<Cause>().map(|cause| cause.0.as_str());
        // Each of these calls has a rate limit of its own: many 503s of an outage hide no 500.
        if response.extensions().get::<ByClients>().is_some() {
            tracing::debug!(%method, route, status, request_id, cause, "answered");
        } else if status == StatusCode::SERVICE_UNAVAILABLE {
            tracing::warn!(%method, route, status, request_id, cause, "answered");
        } else {
            tracing::warn!(%method, route, status, request_id, cause, "answered with an internal error");
        }
    }
    let labels = RequestLabels { method: label, route, status: status.as_u16() };
    let exemplar = traces::exemplar();
    metrics.requests.get_or_create(&labels).observe(started.elapsed().as_secs_f64(), exemplar, None);
    if let Some(span) = span {
        span::end(span, status);
    }
    response.headers_mut().insert(REQUEST_ID, request_id);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Returns the client's id if it is short and plain, since it is echoed and logged; else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let plain = |id: &&HeaderValue| {
        (1..=128).contains(&id.len())
            && id.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
    };
    let new = || HeaderValue::try_from(Uuid::now_v7().to_string()).expect("a UUID is plain");
    request.headers().get(REQUEST_ID).filter(plain).cloned().unwrap_or_else(new)
}

/// Returns the label of a method, which can be any word: each one that became a label would be kept for ever.
fn method_label(method: &Method) -> String {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    if known.contains(method) { method.to_string() } else { span::OTHER_METHOD.to_owned() }
}

fn cors(origins: &[String]) -> anyhow::Result<CorsLayer> {
    let parse = |origin: &String| {
        origin.parse::<HeaderValue>().with_context(|| format!("CORS_ALLOW_ORIGIN: {origin:?} is not an origin"))
    };
    let origins: Vec<HeaderValue> = origins.iter().map(parse).collect::<Result<_, _>>()?;
    let allow = if origins == ["*"] { AllowOrigin::any() } else { AllowOrigin::list(origins) };
    Ok(CorsLayer::new()
        .allow_origin(allow)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, HeaderName::from_static("idempotency-key"), REQUEST_ID])
        .expose_headers([header::RETRY_AFTER, HeaderName::from_static("idempotency-replayed"), REQUEST_ID]))
}
