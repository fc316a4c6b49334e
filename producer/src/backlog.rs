//! Looks now and then at what waits in a shard, for `/metrics`: that Kafka or S3 does not take what it should shows there first.

use std::time::Duration;

use orderflow_service::shutdown::CancellationToken;

use crate::{metrics::BacklogMetrics, shard::Shard};

/// Two looks within the usual time between two scrapes.
const INTERVAL: Duration = Duration::from_secs(15);

/// Watches one shard until `stop`.
pub async fn watch(shard: Shard, metrics: BacklogMetrics, stop: CancellationToken) {
    loop {
        // Of a shard that does not answer nothing is known.
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
