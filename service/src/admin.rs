//! The admin port: `/livez`, `/readyz`, `/metrics`. It is separate from the public port, so that clients cannot reach
//! it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
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
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Dependencies, Stage, Supervisor,
    dependency::{Readiness, State as DependencyState},
    supervisor::TaskState,
    telemetry,
};

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
) {
    serve_with(stage, supervisor, listener, dependencies, registry, || None);
}

/// Serves the admin port as [`serve`] does, for a process that can detect that it is stuck. `/livez` fails with the
/// reason that `stuck` returns, so that Kubernetes restarts the process.
pub fn serve_with(
    stage: &Stage,
    supervisor: &Supervisor,
    listener: TcpListener,
    dependencies: Dependencies,
    mut registry: Registry,
    stuck: impl Fn() -> Option<String> + Clone + Send + Sync + 'static,
) {
    register(&mut registry, &dependencies);
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
    let app = Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).route("/metrics", get(metrics));
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

/// Registers the metrics that every process has, beside those of its supervisor.
pub fn register(registry: &mut Registry, dependencies: &Dependencies) {
    registry.register_collector(Box::new(Up(dependencies.clone())));
    registry.register_collector(Box::new(Panics));
    registry.register_collector(Box::new(DroppedLines));
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

/// A collector for the number of panics in the process.
#[derive(Debug)]
struct Panics;

impl Collector for Panics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "Panics, each of which ended one request, one reconcile or one run of a task";
        let counter = ConstCounter::new(telemetry::panics());
        let encoder = encoder.encode_descriptor("orderflow_panics", help, None, MetricType::Counter)?;
        counter.encode(encoder)
    }
}

/// A collector for the number of log lines that were dropped.
#[derive(Debug)]
struct DroppedLines;

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "Log lines that were dropped: rate_limit (one place in the code logged more than 10 warnings or errors per second, \
                    after 100 at once) or slow_output (stdout did not take them)";
        let mut family = encoder.encode_descriptor("orderflow_log_lines_dropped", help, None, MetricType::Counter)?;
        for (reason, count) in telemetry::dropped_lines() {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

/// A collector for the state of each dependency, as in `/readyz`.
#[derive(Debug)]
struct Up(Dependencies);

impl Collector for Up {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "1 if the dependency is up, as in /readyz: a shard by its name, kafka, s3, the Lease or a watch";
        let mut family = encoder.encode_descriptor("orderflow_dependency_up", help, None, MetricType::Gauge)?;
        for (name, state) in self.0.readiness().dependencies {
            let up = i64::from(state == DependencyState::Up);
            ConstGauge::new(up).encode(family.encode_family(&[("dependency", name)])?)?;
        }
        Ok(())
    }
}

async fn metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("encode metrics: {error}\n")).into_response(),
    }
}
