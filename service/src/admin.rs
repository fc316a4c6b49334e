//! The admin port: `/livez`, `/readyz`, `/metrics`. Apart from the public port, so that neither is reachable by clients.

use std::{fmt, net::SocketAddr, sync::Arc};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use clap::Args;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Dependencies, dependency::State as DependencyState};

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

/// Serves until `stop` is cancelled. Keeps answering while the process drains: it must be seen to be unready.
pub async fn serve(
    listener: TcpListener,
    dependencies: Dependencies,
    registry: Registry,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    serve_with(listener, dependencies, registry, || None, stop).await
}

/// The same for a process that can tell that it is stuck: while `stuck` says why, `/livez` fails with that, and whoever
/// runs the process starts it again.
pub async fn serve_with(
    listener: TcpListener,
    dependencies: Dependencies,
    mut registry: Registry,
    stuck: impl Fn() -> Option<String> + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    registry.register_collector(Box::new(Up(dependencies.clone())));
    let livez = move || async move {
        match stuck() {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        }
    };
    let readyz = move || async move {
        let readiness = dependencies.readiness();
        (if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(readiness))
    };
    let app = Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).route("/metrics", get(metrics));
    #[cfg(feature = "failpoints")]
    let app = app.merge(crate::failpoint::routes());
    let app = app.with_state(Arc::new(registry));
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await.context("serve the admin port")
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
