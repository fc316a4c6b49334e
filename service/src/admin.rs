//! The admin port: `/livez`, `/readyz`, `/metrics`. It is separate from the public port, so that clients cannot reach
//! it.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use clap::Args;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Dependencies, Stage, Supervisor, dependency::Readiness, metrics, supervisor::TaskState};

/// The most connections served at once. A further one ends the oldest, so that clients cannot block the probes by
/// holding connections.
const CONNECTIONS: usize = 64;

/// The longest wait for the head of a request, and the longest life of an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of a request's head.
const BUFFER: usize = 16 * 1024;

/// The longest wait for requests in flight when the stage is stopped.
const DRAIN: Duration = Duration::from_secs(2);

#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(next_help_heading = "Addresses")]
pub struct Settings {
    /// Address to listen on
    #[arg(long, env = "HOST", default_value = "0.0.0.0")]
    pub host: std::net::IpAddr,

    /// Port of /livez, /readyz and /metrics; 0 chooses a free one
    #[arg(long, env = "ADMIN_PORT", default_value_t = 9464)]
    pub admin_port: u16,
}

/// Binds `address` and logs the bound address under the name `server`.
pub async fn bind(server: &'static str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address} ({server})"))?;
    let address = listener.local_addr().context("read the bound address")?;
    tracing::info!(server, %address, "listening");
    Ok(listener)
}

/// Serves the admin port as a task of `stage` until the stage is stopped. Stop it last, so that `/readyz` reports the
/// process as unready while it drains.
pub fn serve(
    stage: &Stage,
    supervisor: &Supervisor,
    listener: TcpListener,
    dependencies: Dependencies,
    registry: Registry,
    program: &'static str,
) {
    serve_with(stage, supervisor, listener, dependencies, registry, program, || None);
}

/// Serves the admin port as [`serve`] does, for a process that can detect that it is stuck. `/livez` fails with the
/// reason that `stuck` returns, so that Kubernetes restarts the process.
pub fn serve_with(
    stage: &Stage,
    supervisor: &Supervisor,
    listener: TcpListener,
    dependencies: Dependencies,
    mut registry: Registry,
    program: &'static str,
    stuck: impl Fn() -> Option<String> + Clone + Send + Sync + 'static,
) {
    metrics::register(&mut registry, &dependencies, program);
    let supervisor = supervisor.clone();
    let livez = move || async move {
        match stuck() {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    };
    let readyz = move || async move {
        let (readiness, tasks) = (dependencies.readiness(), supervisor.tasks());
        let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, Json(Ready { readiness, tasks }))
    };
    let app = Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).route("/metrics", get(export));
    #[cfg(feature = "failpoints")]
    let app = app.merge(crate::failpoint::routes());
    let app = app.with_state(Arc::new(registry));
    // Shared, because it outlives the task that accepts from it.
    let listener = Arc::new(listener);
    stage.run("admin", move |stop| {
        let (listener, app) = (listener.clone(), app.clone());
        async move {
            accept(&listener, &app, &stop).await;
            Ok(())
        }
    });
}

/// Serves the connections of `listener` until `stop`.
async fn accept(listener: &TcpListener, app: &Router, stop: &CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(BUFFER);
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut newest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // The process has no free file descriptor, or the client disconnected before it was accepted.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = TowerToHyperService::new(app.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        newest.retain(|connection| !connection.is_finished());
        newest.push_back(connections.spawn(connection));
        if newest.len() > CONNECTIONS
            && let Some(oldest) = newest.pop_front()
        {
            oldest.abort();
        }
    }
    // Dropping the set aborts the connections that have not ended.
    let _ = timeout(DRAIN, graceful.shutdown()).await;
}

/// The body of `/readyz`.
#[derive(Serialize)]
struct Ready {
    #[serde(flatten)]
    readiness: Readiness,
    tasks: BTreeMap<String, TaskState>,
}

async fn export(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("encode metrics: {error}\n")).into_response(),
    }
}
