//! Measures the backlog of a shard for `/metrics`: a Kafka or S3 that does not keep up shows there first.

use std::time::Duration;

use orderflow_service::shutdown::CancellationToken;

use crate::{metrics::BacklogMetrics, shard::Shard};

/// Time between two measurements: half the usual time between two scrapes.
const INTERVAL: Duration = Duration::from_secs(15);

/// Measures one shard until `stop`.
pub async fn watch(shard: Shard, metrics: BacklogMetrics, stop: CancellationToken) {
    loop {
        // The backlog of a shard that does not answer is not known.
        let [outbox, receipt_jobs] = match shard.figures().await {
            Ok(figures) => [figures.outbox_age, figures.receipt_jobs_age].map(Option::unwrap_or_default),
            Err(_) => [f64::NAN; 2],
        };
        metrics.outbox_oldest.set(outbox);
        metrics.receipt_jobs_oldest.set(receipt_jobs);
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}
