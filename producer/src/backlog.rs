//! Measures the backlog of a shard, and the use of its pool, for `/metrics`: a Kafka or S3 that does not keep up shows there first.

use std::time::Duration;

use orderflow_service::shutdown::CancellationToken;

use crate::{
    metrics::BacklogMetrics,
    shard::{Figures, Shard},
};

/// Time between two measurements: half the usual time between two scrapes.
const INTERVAL: Duration = Duration::from_secs(15);

/// Measures one shard until `stop`.
pub async fn watch(shard: Shard, metrics: BacklogMetrics, stop: CancellationToken) {
    loop {
        // The backlog of a shard that does not answer is not known.
        let figures = shard.figures().await.ok();
        let age = |age: fn(&Figures) -> Option<f64>| {
            figures.as_ref().map_or(f64::NAN, |figures| age(figures).unwrap_or_default())
        };
        let count = |count: fn(&Figures) -> i64| figures.as_ref().map_or(f64::NAN, |figures| count(figures) as f64);
        metrics.outbox_oldest.set(age(|figures| figures.outbox_age));
        metrics.outbox_events.set(count(|figures| figures.outbox));
        metrics.receipt_jobs_oldest.set(age(|figures| figures.receipt_jobs_age));
        metrics.receipt_jobs.set(count(|figures| figures.receipt_jobs));
        let (in_use, idle) = shard.pool().occupancy();
        metrics.pool_in_use.set(in_use as i64);
        metrics.pool_idle.set(idle as i64);
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}
