//! The admin port: `/livez`, `/readyz`, `/metrics`. Apart from the public port, so that neither is reachable by clients.

use std::{collections::BTreeMap, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
    serve::Listener,
};
use clap::Args;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    Dependencies, Stage, Supervisor,
    dependency::{Readiness, State as DependencyState},
    supervisor::TaskState,
    telemetry,
};

#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(next_help_heading = "Addresses")]
pub struct Settings {
    /// Address to listen on
    #[arg(long, env = "HOST", default_value = "0.0.0.0")]
    pub host: std::net::IpAddr,

    /// Port of /livez, /readyz and /metrics; 0 takes a free one
    #[arg(long, env = "ADMIN_PORT", default_value_t = 9464)]
    pub admin_port: u16,
}

/// Binds `address` and logs what was bound, as `server`.
pub async fn bind(server: &'static str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address} ({server})"))?;
    let address = listener.local_addr().context("read the bound address")?;
    tracing::info!(server, %address, "listening");
    Ok(listener)
}

/// Serves as a task of `stage` until the stage is stopped. Stop it last, so that `/readyz` reports the process as unready
/// while it drains.
pub fn serve(
    stage: &Stage,
    supervisor: &Supervisor,
    listener: TcpListener,
    dependencies: Dependencies,
    registry: Registry,
) {
    serve_with(stage, supervisor, listener, dependencies, registry, || None);
}

/// The same for a process that can tell that it is stuck: while `stuck` says why, `/livez` fails with that, and whoever
/// runs the process starts it again.
pub fn serve_with(
    stage: &Stage,
    supervisor: &Supervisor,
    listener: TcpListener,
    dependencies: Dependencies,
    mut registry: Registry,
    stuck: impl Fn() -> Option<String> + Clone + Send + Sync + 'static,
) {
    registry.register_collector(Box::new(Up(dependencies.clone())));
    registry.register_collector(Box::new(Panics));
    registry.register_collector(Box::new(DroppedLines));
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
    let listener = Shared(Arc::new(listener));
    stage.run("admin", move |stop| {
        let serving = axum::serve(listener.clone(), app.clone()).with_graceful_shutdown(stop.cancelled_owned());
        async move { serving.await.context("serve the admin port") }
    });
}

/// The body of `/readyz`.
#[derive(Serialize)]
struct Ready {
    #[serde(flatten)]
    readiness: Readiness,
    tasks: BTreeMap<String, TaskState>,
}

/// A listener that outlives the task that accepts from it.
#[derive(Clone)]
struct Shared(Arc<TcpListener>);

impl Listener for Shared {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                // The process has no free file descriptor, or the client disconnected before it was accepted.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Exports the number of panics of the whole process.
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

/// Exports the number of log lines that nobody can read any more.
#[derive(Debug)]
struct DroppedLines;

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "Log lines that were dropped: over the rate limit of their place, or stdout was too slow";
        let mut family = encoder.encode_descriptor("orderflow_log_lines_dropped", help, None, MetricType::Counter)?;
        for (reason, count) in telemetry::dropped_lines() {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

/// What `/readyz` says of each dependency, as a metric.
#[derive(Debug)]
struct Up(Dependencies);

impl Collector for Up {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "1 if the dependency is up, as /readyz says";
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
