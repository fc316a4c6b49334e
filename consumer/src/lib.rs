//! OrderFlow's consumer: turns each order event into one notification, exactly once, through Kafka alone. `main` and the
//! tests start it with [`run`]; [`dlq`] is what an operator does about the events that could not be read.

#![forbid(unsafe_code)]

mod batch;
pub mod dlq;
mod membership;
pub mod metrics;
mod pipeline;
mod position;
mod record;
mod settings;
mod topics;

use anyhow::Context;
use orderflow_service::{
    Dependencies, Need, admin,
    prometheus::registry::Registry,
    shutdown::{self, CancellationToken},
};
use tokio::{net::TcpListener, sync::oneshot};

pub use position::LostPosition;
pub use settings::{Command, Settings};

use crate::{metrics::Metrics, pipeline::Pipeline};

/// Consumes until `stop` is cancelled, and has then at most [`shutdown::DEADLINE`] to leave its group. Whatever happens to
/// Kafka is waited out; an error means that somebody has to decide (see [`LostPosition`]).
/// `admin` serves `/livez`, `/readyz` and `/metrics` until the very end.
pub async fn run(settings: Settings, admin: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
    let dependencies = Dependencies::default();
    let kafka = dependencies.register("kafka", Need::Always);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let drained = CancellationToken::new();
    let admin = tokio::spawn(admin::serve(admin, dependencies.clone(), registry, drained.clone()));

    // librdkafka's calls block, so the loop has a thread of its own.
    let (report, ended) = oneshot::channel();
    let pipeline = Pipeline::new(settings, kafka, metrics, stop.clone());
    std::thread::Builder::new()
        .name("pipeline".to_owned())
        .spawn(move || report.send(pipeline.run()))
        .context("start the pipeline's thread")?;

    let unready = stop.clone();
    tokio::spawn(async move {
        unready.cancelled().await;
        dependencies.stop();
    });
    shutdown::within_deadline(&stop, async {
        let result = ended.await.context("the pipeline's thread panicked");
        drained.cancel();
        admin.await.context("the admin port's task panicked")??;
        result?
    })
    .await
}
