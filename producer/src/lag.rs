//! Measures the lag of the consumer group for `/metrics`. The producers do it, so that the lag is seen when all consumers
//! are down. With transactions the difference of offsets is never 0, so the events themselves are counted.

use std::{collections::BTreeSet, time::Duration};

use orderflow_service::shutdown::CancellationToken;

use crate::{metrics::Metrics, stats::Stats};

/// Time between two measurements: half the usual time between two scrapes.
const INTERVAL: Duration = Duration::from_secs(15);

/// Measures until `stop`.
pub async fn watch(stats: Stats, metrics: Metrics, stop: CancellationToken) {
    let mut known = BTreeSet::new();
    loop {
        match stats.lag().await {
            Some(partitions) => {
                for lag in partitions {
                    known.insert(lag.partition);
                    let events = lag.events.map_or(f64::NAN, |events| events as f64);
                    metrics.set_lag(lag.partition, events, lag.seconds.unwrap_or(f64::NAN));
                }
            }
            // A lag that was read before the outage may have grown since.
            None => {
                for partition in &known {
                    metrics.set_lag(*partition, f64::NAN, f64::NAN);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}
