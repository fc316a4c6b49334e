//! The operator's metrics, and the heartbeat that `/livez` checks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use orderflow_service::metrics::LATENCIES;
use orderflow_service::prometheus::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{api_requests::Requests, condition::Reason};

/// The longest time between two heartbeats. No slow answer exceeds it, because the Lease's duration bounds each.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(120);

#[derive(Clone)]
pub struct Metrics {
    reconciles: Counter,
    panics: Counter,
    problems: Family<ReasonLabel, Counter>,
    duration: Histogram,
    ready: Family<ResourceLabels, Gauge>,
    pub leader: Gauge,
    pub workqueue_depth: Gauge,
    pub api_requests: Requests,
    errors: Family<ReasonLabel, Counter>,
}

type ReasonLabel = [(&'static str, &'static str); 1];
type ResourceLabels = [(&'static str, String); 2];

impl Metrics {
    pub fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("orderflow_operator");
        let metrics = Self {
            reconciles: Counter::default(),
            panics: Counter::default(),
            problems: Family::default(),
            duration: Histogram::new(LATENCIES.into_iter().chain([30.0, 60.0, 120.0])),
            ready: Family::default(),
            leader: Gauge::default(),
            workqueue_depth: Gauge::default(),
            api_requests: Family::default(),
            errors: Family::default(),
        };
        registry.register("reconciles", "Finished reconciles", metrics.reconciles.clone());
        registry.register(
            "reconcile_panics",
            "Reconciles that panicked; each is retried with backoff",
            metrics.panics.clone(),
        );
        registry.register(
            "problems",
            "Problems found by reconciles, by reason, counted at each reconcile",
            metrics.problems.clone(),
        );
        registry.register("reconcile_duration_seconds", "Time that a reconcile took", metrics.duration.clone());
        registry.register("workqueue_depth", "OrderFlows that wait for a reconcile", metrics.workqueue_depth.clone());
        registry.register(
            "api_requests",
            "Requests to the API server, by method and status; none: no answer",
            metrics.api_requests.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Reconciles that ended with an error, by the step that failed; each is retried with backoff",
            metrics.errors.clone(),
        );
        registry.register(
            "ready",
            "1 if the OrderFlow is ready, else 0; only the leader has it",
            metrics.ready.clone(),
        );
        registry.register(
            "leader",
            "1 if this process is the leader, else 0; the sum over all processes must be 1",
            metrics.leader.clone(),
        );
        metrics
    }

    pub fn reconciled(&self, began: Instant) {
        self.reconciles.inc();
        self.duration.observe(began.elapsed().as_secs_f64());
    }

    /// Counts a reconcile that ended with an error.
    pub fn failed(&self, step: &'static str) {
        self.errors.get_or_create(&[("reason", step)]).inc();
    }

    pub fn panicked(&self) {
        self.panics.inc();
    }

    pub fn problem(&self, reason: Reason) {
        self.problems.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    pub fn ready(&self, namespace: &str, name: &str, ready: bool) {
        self.ready.get_or_create(&labels(namespace, name)).set(ready.into());
    }

    pub fn remove(&self, namespace: &str, name: &str) {
        self.ready.remove(&labels(namespace, name));
    }
}

fn labels(namespace: &str, name: &str) -> ResourceLabels {
    [("namespace", namespace.to_owned()), ("name", name.to_owned())]
}

/// The heartbeat of the loop that acquires or renews the Lease. An API server that is down is no reason for a restart,
/// but a process whose loops are stuck is. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Pulse {
    start: Instant,
    /// The last heartbeat, in milliseconds after `start`.
    last: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { start: Instant::now(), last: Arc::default() }
    }
}

impl Pulse {
    pub fn beat(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns the time since the last heartbeat.
    pub fn silence(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}
