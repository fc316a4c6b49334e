//! OrderFlow's consumer: turns each order event into one notification, exactly once, with Kafka alone. `main` and the
//! tests start it with [`run`]. [`dlq`] has the commands for events that could not be read.

#![forbid(unsafe_code)]

mod batch;
mod cli;
pub mod dlq;
mod membership;
pub mod metrics;
mod pipeline;
mod position;
mod record;
mod settings;
mod spans;
mod topics;

use std::time::Duration;

use anyhow::bail;
use orderflow_service::{
    Dependencies, Need, Supervisor, admin,
    prometheus::registry::Registry,
    shutdown::{self, CancellationToken},
};
use tokio::net::TcpListener;

pub use cli::{Cli, Command};
pub use position::LostPosition;
pub use settings::Settings;

use crate::{metrics::Metrics, pipeline::Pipeline};

/// Consumes until `stop` is cancelled, and waits out any failure of Kafka. Returns an error if a person has to decide
/// (see [`LostPosition`]), or if the loop keeps dying after restarts. `admin` serves `/livez`, `/readyz` and `/metrics`
/// until the end.
pub async fn run(settings: Settings, admin: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
    let dependencies = Dependencies::new(stop.clone());
    let kafka = dependencies.register("kafka", Need::Always);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let supervisor = Supervisor::new(&mut registry, stop.clone());
    let (consuming, administering) = (supervisor.stage(), supervisor.stage());
    admin::serve(&administering, &supervisor, admin, dependencies, registry, "consumer");

    // librdkafka's calls block, so the loop has a thread of its own.
    consuming.run_blocking("pipeline", move |stop| {
        Pipeline::new(settings.clone(), kafka.clone(), metrics.clone(), stop.clone()).run()
    });
    let failure = tokio::select! {
        failure = supervisor.failed() => Some(failure),
        () = stop.cancelled() => None,
    };
    // From here on an ended task is not restarted, even if the loop failed before the signal.
    stop.cancel();
    consuming.stop();
    let has_ended = consuming.ended(shutdown::DEADLINE.saturating_sub(2 * ADMIN_END)).await;
    administering.stop();
    administering.ended(ADMIN_END).await;
    match failure.or_else(|| supervisor.failure()) {
        Some(failure) => Err(failure),
        None if has_ended => Ok(()),
        None => bail!("the consumer did not leave its group in time"),
    }
}

/// The longest wait at shutdown for responses of the admin port that are in progress.
const ADMIN_END: Duration = Duration::from_secs(1);
