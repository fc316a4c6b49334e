//! The consumer's metrics. Counters count only committed records.

use std::sync::atomic::AtomicU64;

use orderflow_service::metrics::{Exemplar, LATENCIES};
use orderflow_service::prometheus::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, exemplar::HistogramWithExemplars, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// The metrics of a consumer. Cheap to clone; clones share their values.
#[derive(Clone)]
pub struct Metrics {
    /// `orderflow_consumer_events_total{outcome}`: settled events.
    pub events: Family<OutcomeLabel, Counter>,
    /// `orderflow_consumer_batches_total`: committed transactions.
    pub batches: Counter,
    /// `orderflow_consumer_transaction_seconds`: duration of committed transactions.
    pub transaction: Histogram,
    /// `orderflow_consumer_aborts_total`: aborted transactions, whose batches are read again.
    pub aborts: Counter,
    /// `orderflow_consumer_rejoins_total{reason}`: rejoins of the group with two new clients.
    pub rejoins: Family<RejoinLabel, Counter>,
    /// `orderflow_consumer_assigned_partitions`: partitions of the events' topic that are assigned to this process.
    pub assigned_partitions: Gauge,
    /// `orderflow_consumer_last_commit_timestamp_seconds`: Unix time of the last commit, 0 before the first.
    pub last_commit: Gauge<f64, AtomicU64>,
    /// `orderflow_consumer_end_to_end_seconds`: time from the acceptance of an order to its notification.
    pub end_to_end: HistogramWithExemplars<Exemplar>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    pub outcome: OutcomeValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "these are the words that the metric shows")]
pub enum OutcomeValue {
    /// The event became a notification.
    notified,
    /// The event could not be read and became a dead letter.
    dead_letter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RejoinLabel {
    pub reason: RejoinReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "these are the words that the metric shows")]
pub enum RejoinReason {
    /// A topic is missing or has too few partitions.
    topics,
    /// No transactional producer could be created.
    producer,
    /// The start offsets of the partitions could not be read.
    assignment,
    /// Reading the events failed.
    consume,
    /// A transaction's outcome is unknown, its producer was fenced, or it could not be aborted.
    transaction,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("orderflow_consumer");
        let metrics = Self {
            events: Family::default(),
            batches: Counter::default(),
            transaction: Histogram::new(LATENCIES),
            aborts: Counter::default(),
            rejoins: Family::default(),
            assigned_partitions: Gauge::default(),
            last_commit: Gauge::default(),
            // An event may wait for the end of an outage.
            end_to_end: HistogramWithExemplars::new(LATENCIES.into_iter().chain([30.0, 60.0, 300.0, 3600.0])),
        };
        registry.register("events", "Events settled, by outcome", metrics.events.clone());
        registry.register("batches", "Committed transactions", metrics.batches.clone());
        registry.register_with_unit(
            "transaction",
            "Time from the beginning of a transaction to its commit",
            Unit::Seconds,
            metrics.transaction.clone(),
        );
        registry.register("aborts", "Aborted transactions; their batches are read again", metrics.aborts.clone());
        registry.register(
            "rejoins",
            "Times that the consumer dropped its clients and joined its group again, by reason",
            metrics.rejoins.clone(),
        );
        registry.register(
            "assigned_partitions",
            "Partitions assigned to this process; the sum over all consumers is the topic's number of partitions",
            metrics.assigned_partitions.clone(),
        );
        registry.register_with_unit(
            "last_commit_timestamp",
            "Unix time of the last committed transaction, 0 before the first",
            Unit::Seconds,
            metrics.last_commit.clone(),
        );
        registry.register_with_unit(
            "end_to_end",
            "Time from the acceptance of an order to the start of the transaction with its notification, by the clocks of two machines",
            Unit::Seconds,
            metrics.end_to_end.clone(),
        );
        metrics
    }
}
