//! The controls: stop and start parts of `up` over HTTP, to see how the rest behaves without them. For the dashboard
//! and for people on this machine; the producer has no control, because it is what they watch.
//!
//! Anyone who can reach this can stop services, so it listens on loopback, and no page but the dashboard may use it.

mod guard;

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State, rejection::JsonRejection},
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, put},
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use crate::{
    control::{self, Control},
    ports::Ports,
};
use guard::Guard;

/// The longest body accepted; the expected one is `{"running":false}`.
const LONGEST_BODY: usize = 1024;

/// The server of the controls. It takes its port before anything is started.
#[derive(Debug)]
pub(super) struct Controls {
    listener: TcpListener,
    guard: Guard,
}

impl Controls {
    pub(super) async fn listen(ports: &Ports) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ports.controls_port)).await;
        let listener = listener.with_context(|| format!("listen on port {} (controls)", ports.controls_port))?;
        Ok(Self { listener, guard: Guard::for_pages_of(ports.port) })
    }

    /// Serves the controls; ends only by being dropped.
    pub(super) async fn serve(self, controls: Vec<Arc<Control>>) {
        if let Err(error) = axum::serve(self.listener, router(controls, self.guard)).await {
            eprintln!("the server of the controls failed: {error:#}");
        }
    }
}

/// Returns the address of the controls.
pub(super) fn url(ports: &Ports) -> String {
    format!("http://127.0.0.1:{}", ports.controls_port)
}

type All = Arc<[Arc<Control>]>;

fn router(controls: Vec<Arc<Control>>, guard: Guard) -> Router {
    Router::new()
        .route("/controls", get(list))
        .route("/controls/{name}", put(set))
        .fallback(async || problem(StatusCode::NOT_FOUND, "only /controls exists here"))
        .method_not_allowed_fallback(async || {
            problem(StatusCode::METHOD_NOT_ALLOWED, "GET /controls, PUT /controls/NAME")
        })
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .layer(middleware::from_fn_with_state(Arc::new(guard), guard::check))
        .with_state(All::from(controls))
}

#[derive(Serialize)]
struct Part {
    name: &'static str,
    title: &'static str,
    state: control::State,
    note: &'static str,
}

async fn list(State(controls): State<All>) -> Response {
    let part = |control: &Arc<Control>| Part {
        name: control.name,
        title: control.title,
        state: control.state(),
        note: control.note,
    };
    Json(json!({"parts": controls.iter().map(part).collect::<Vec<_>>()})).into_response()
}

async fn set(
    State(controls): State<All>,
    Path(name): Path<String>,
    // A map, because serde would also read a struct from an array.
    wanted: Result<Json<Map<String, Value>>, JsonRejection>,
) -> Response {
    const FORM: &str = r#"the body must be {"running":true} or {"running":false}"#;
    let Some(control) = controls.iter().find(|control| control.name == name) else {
        let names: Vec<_> = controls.iter().map(|control| control.name).collect();
        return problem(StatusCode::NOT_FOUND, &format!("no such part; the parts are {}", names.join(", ")));
    };
    match wanted {
        Err(rejection) => problem(rejection.status(), &format!("{FORM}: {rejection}")),
        Ok(Json(wanted)) => match wanted.get("running").and_then(Value::as_bool) {
            None => problem(StatusCode::UNPROCESSABLE_ENTITY, FORM),
            Some(running) => {
                control.set(running);
                (StatusCode::ACCEPTED, Json(json!({"name": control.name, "state": control.state()}))).into_response()
            }
        },
    }
}

/// Returns an error, as RFC 9457 describes it.
fn problem(status: StatusCode, detail: &str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let body = json!({"type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail});
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use anyhow::ensure;
    use reqwest::Method;

    use super::*;
    use orderflow_testbed::http;

    /// Serves controls of two parts that do not exist, for pages of port 8080.
    async fn served() -> Result<(String, [Arc<Control>; 2])> {
        let parts = ["s3", "kafka"].map(|name| Arc::new(Control::new(name, name, "")));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}/controls", listener.local_addr()?);
        let controls = Controls { listener, guard: Guard::for_pages_of(8080) };
        tokio::spawn(controls.serve(parts.to_vec()));
        Ok((url, parts))
    }

    async fn put(url: &str, body: &'static str, headers: &[(&str, &str)]) -> Result<StatusCode> {
        let request = http::client().put(url).header("content-type", "application/json").body(body);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        Ok(request.send().await?.status())
    }

    #[tokio::test]
    async fn switching_a_part_is_idempotent() -> Result<()> {
        let (url, [s3, kafka]) = served().await?;
        for _ in 0..2 {
            ensure!(put(&format!("{url}/s3"), r#"{"running":false}"#, &[]).await? == 202, "not accepted");
            ensure!(!s3.is_wanted() && kafka.is_wanted(), "{s3:?} {kafka:?}");
        }
        let listed: serde_json::Value = http::client().get(&url).send().await?.json().await?;
        ensure!(listed["parts"][0]["state"] == "stopping" && listed["parts"][1]["state"] == "running", "{listed}");
        ensure!(put(&format!("{url}/s3"), r#"{"running":true}"#, &[]).await? == 202, "not accepted");
        ensure!(s3.is_wanted(), "{s3:?}");
        Ok(())
    }

    #[tokio::test]
    async fn an_invalid_request_changes_nothing() -> Result<()> {
        let (url, [s3, _]) = served().await?;
        ensure!(put(&format!("{url}/postgres"), r#"{"running":false}"#, &[]).await? == 404, "an unknown part");
        ensure!(put(&format!("{url}/s3"), r#"{"running":0}"#, &[]).await? == 422, "no truth value");
        ensure!(put(&format!("{url}/s3"), "[false]", &[]).await? == 422, "an array");
        ensure!(put(&format!("{url}/s3"), "{", &[]).await? == 400, "no JSON");
        let post = http::client().post(format!("{url}/s3")).send().await?;
        ensure!(post.status() == 405, "{post:?}");
        ensure!(s3.is_wanted(), "{s3:?}");
        Ok(())
    }

    #[tokio::test]
    async fn only_the_dashboard_page_may_use_the_controls() -> Result<()> {
        let (url, [s3, _]) = served().await?;
        let part = format!("{url}/s3");
        let off = r#"{"running":false}"#;
        for origin in ["http://evil.example", "http://localhost:8081", "https://localhost:8080", "null"] {
            ensure!(put(&part, off, &[("origin", origin)]).await? == 403, "{origin} was allowed");
        }
        // The name of another site that resolves to this machine (DNS rebinding): the browser takes it for that page's
        // server.
        for host in ["evil.example", "127.0.0.1.evil.example:8082", "localhost.evil.example"] {
            ensure!(put(&part, off, &[("host", host)]).await? == 403, "{host} was allowed");
        }
        ensure!(s3.is_wanted(), "{s3:?}");
        for origin in ["http://localhost:8080", "http://127.0.0.1:8080"] {
            let asked = http::client()
                .request(Method::OPTIONS, &part)
                .header("origin", origin)
                .header("access-control-request-method", "PUT")
                .header("access-control-request-headers", "content-type")
                .send()
                .await?;
            let header = |name: &str| asked.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
            ensure!(asked.status() == 204 && header("access-control-allow-origin") == origin, "{asked:?}");
            ensure!(header("access-control-allow-methods").contains("PUT"), "{asked:?}");
            let listed = http::client().get(&url).header("origin", origin).send().await?;
            ensure!(listed.headers()["access-control-allow-origin"] == origin, "{listed:?}");
            ensure!(put(&part, off, &[("origin", origin)]).await? == 202, "{origin} was refused");
        }
        Ok(())
    }
}
