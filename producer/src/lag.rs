//! Measures the lag of the consumer group for `/metrics`. The producers do it, so that the lag is seen when all consumers
//! are down. With transactions the difference of offsets is never 0, so the events themselves are counted.

use std::{collections::BTreeSet, time::Duration};

use orderflow_core::Timestamp;
use orderflow_service::shutdown::CancellationToken;

use crate::{
    metrics::Metrics,
    stats::{ANSWER_TIMEOUT, Answer, GroupProgress},
};

/// Time between two measurements: half the usual time between two scrapes.
const INTERVAL: Duration = Duration::from_secs(15);

/// Measures until `stop`. `group` has clients of its own: queries of one client do not run side by side, and those of
/// requests must not wait for this.
pub async fn watch(group: &GroupProgress, metrics: &Metrics, stop: &CancellationToken) {
    let mut known = BTreeSet::new();
    loop {
        tokio::select! {
            measured = group.query(ANSWER_TIMEOUT) => record(measured.ok().as_ref(), &mut known, metrics),
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn record(answer: Option<&Answer>, known: &mut BTreeSet<i32>, metrics: &Metrics) {
    let Some(Answer { partitions, reach, .. }) = answer else {
        // A lag that was read before the outage may have grown since.
        for partition in known.iter() {
            metrics.set_lag(*partition, f64::NAN, f64::NAN);
        }
        return;
    };
    let now = Timestamp::now().unix_microseconds();
    for (partition, reach) in std::iter::zip(partitions, reach) {
        known.insert(partition.partition);
        let age = |oldest: Timestamp| (now - oldest.unix_microseconds()).max(0) as f64 / 1e6;
        let seconds = if partition.lag == Some(0) { Some(0.0) } else { reach.oldest.map(age) };
        let events = partition.lag.map_or(f64::NAN, |lag| lag as f64);
        metrics.set_lag(partition.partition, events, seconds.unwrap_or(f64::NAN));
    }
}
