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

use std::time::Duration;

use orderflow_service::{
    Dependencies, Need, Supervisor, admin,
    prometheus::registry::Registry,
    shutdown::{self, CancellationToken},
};
use tokio::net::TcpListener;

pub use position::LostPosition;
pub use settings::{Command, Settings};

use crate::{metrics::Metrics, pipeline::Pipeline};

/// Consumes until `stop` is cancelled. Waits out any failure of Kafka. An error means that a person has to decide (see
/// [`LostPosition`]), or that restarts do not keep the loop running. `admin` serves `/livez`, `/readyz` and `/metrics`
/// until the end.
pub async fn run(settings: Settings, admin: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
    let dependencies = Dependencies::new(stop.clone());
    let kafka = dependencies.register("kafka", Need::Always);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let supervisor = Supervisor::new(&mut registry, stop.clone());
    let (consuming, administering) = (supervisor.stage(), supervisor.stage());
    admin::serve(&administering, &supervisor, admin, dependencies, registry);

    // librdkafka's calls block, so the loop has a thread of its own.
    consuming.run_blocking("pipeline", move |stop| {
        Pipeline::new(settings.clone(), kafka.clone(), metrics.clone(), stop.clone()).run()
    });
    let result = tokio::select! {
        failure = supervisor.failed() => Err(failure),
        () = stop.cancelled() => {
            consuming.stop();
            consuming.ended(shutdown::DEADLINE).await;
            Ok(())
        }
    };
    administering.stop();
    administering.ended(ADMIN_END).await;
    result
}

/// Longest wait at shutdown for responses of the admin port that are in progress.
const ADMIN_END: Duration = Duration::from_secs(1);
