//! Every metric of the producer, by name, except `orderflow_dependency_up`, which every program has.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use orderflow_service::metrics::{Exemplar, LATENCIES, Seconds};
use orderflow_service::prometheus::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{
        counter::Counter,
        exemplar::HistogramWithExemplars,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// The PostgreSQL settings that can put acknowledged orders at risk and that a session cannot change.
pub const WATCHED_SETTINGS: [&str; 3] = ["fsync", "full_page_writes", "synchronous_standby_names"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub method: String,
    pub route: String,
    pub status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ShardLabel {
    pub shard: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    pub outcome: OrderOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "these are the words that the metric shows")]
pub enum OrderOutcome {
    /// The order was stored.
    created,
    /// The Idempotency-Key was known; the first reply was sent again.
    replayed,
    /// The request breaks a rule.
    invalid,
    /// The Idempotency-Key was used for another order.
    key_reused,
    /// The order was not stored; the client may send it again.
    not_accepted,
    /// The shard did not answer in time; the order may have been stored.
    outcome_unknown,
    /// The database refuses the order.
    refused,
}

impl OrderOutcome {
    const ALL: [Self; 7] = [
        Self::created,
        Self::replayed,
        Self::invalid,
        Self::key_reused,
        Self::not_accepted,
        Self::outcome_unknown,
        Self::refused,
    ];
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SettingLabels {
    shard: String,
    setting: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    pub method: String,
    pub route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabel {
    partition: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    shard: String,
    state: PoolState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "these are the words that the metric shows")]
pub enum PoolState {
    /// Connections that run a query.
    in_use,
    /// Connections that wait for one.
    idle,
}

#[derive(Clone)]
pub struct Sizes;

impl MetricConstructor<Histogram> for Sizes {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(1.0, 2.0, 11))
    }
}

/// A latency with the traces in which it was measured.
pub type Latency = HistogramWithExemplars<Exemplar>;

/// Makes latencies, for families.
#[derive(Clone)]
pub struct Latencies;

impl MetricConstructor<Latency> for Latencies {
    fn new_metric(&self) -> Latency {
        HistogramWithExemplars::new(LATENCIES.into_iter())
    }
}

pub type Requests = Family<RequestLabels, Latency, Latencies>;

/// The metrics of a producer; clones share them.
#[derive(Clone)]
pub struct Metrics {
    pub requests: Requests,
    pub requests_in_flight: Family<RouteLabels, Gauge>,
    pub orders: Family<OutcomeLabel, Counter>,
    pub queue_full: Counter,
    pub feeds: Gauge,
    pub connections: Gauge,
    pub connections_refused: Counter,
    write_queue: Family<ShardLabel, Gauge>,
    write_queue_seconds: Family<ShardLabel, Histogram, Seconds>,
    batch_size: Family<ShardLabel, Histogram, Sizes>,
    batch_seconds: Family<ShardLabel, Histogram, Seconds>,
    relay_leads: Family<ShardLabel, Gauge>,
    relay_batch_size: Family<ShardLabel, Histogram, Sizes>,
    relay_events: Family<ShardLabel, Counter>,
    relay_dead: Family<ShardLabel, Counter>,
    receipts_stored: Family<ShardLabel, Counter>,
    receipts_failed: Family<ShardLabel, Counter>,
    outbox_events: Family<ShardLabel, Measured>,
    outbox_oldest: Family<ShardLabel, Measured>,
    receipt_jobs: Family<ShardLabel, Measured>,
    receipt_jobs_oldest: Family<ShardLabel, Measured>,
    pool_connections: Family<PoolLabels, Gauge>,
    consumer_lag_events: Family<PartitionLabel, Measured>,
    consumer_lag_seconds: Family<PartitionLabel, Measured>,
    unsafe_setting: Family<SettingLabels, Gauge>,
}

/// A number or an age in seconds; NaN if it could not be measured.
type Measured = Gauge<f64, AtomicU64>;

/// The metrics of one shard's backlog.
#[derive(Clone)]
pub struct BacklogMetrics {
    pub outbox_events: Measured,
    pub outbox_oldest: Measured,
    pub receipt_jobs: Measured,
    pub receipt_jobs_oldest: Measured,
    pub pool_in_use: Gauge,
    pub pool_idle: Gauge,
}

/// The metrics of one shard, resolved once.
#[derive(Clone)]
pub struct ShardMetrics {
    /// Orders that wait for a writer.
    pub write_queue: Gauge,
    pub write_queue_seconds: Histogram,
    pub batch_size: Histogram,
    pub batch_seconds: Histogram,
    pub relay_leads: Gauge,
    pub relay_batch_size: Histogram,
    pub relay_events: Counter,
    pub relay_dead: Counter,
    pub receipts_stored: Counter,
    pub receipts_failed: Counter,
    pub unsafe_settings: UnsafeSettings,
}

/// The settings of one shard's server that put acknowledged orders at risk, as they were last read.
#[derive(Clone)]
pub struct UnsafeSettings {
    shard: String,
    metric: Family<SettingLabels, Gauge>,
    last: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl UnsafeSettings {
    /// Records the unsafe settings, and returns those that were safe until now.
    pub fn replace(&self, settings: BTreeSet<&'static str>) -> Vec<&'static str> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let new = settings.difference(&last).copied().collect();
        for setting in WATCHED_SETTINGS {
            let labels = SettingLabels { shard: self.shard.clone(), setting };
            self.metric.get_or_create_owned(&labels).set(i64::from(settings.contains(setting)));
        }
        *last = settings;
        new
    }
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::new_with_constructor(Latencies),
            requests_in_flight: Family::default(),
            orders: Family::default(),
            queue_full: Counter::default(),
            feeds: Gauge::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            write_queue: Family::default(),
            write_queue_seconds: Family::new_with_constructor(Seconds),
            batch_size: Family::new_with_constructor(Sizes),
            batch_seconds: Family::new_with_constructor(Seconds),
            relay_leads: Family::default(),
            relay_batch_size: Family::new_with_constructor(Sizes),
            relay_events: Family::default(),
            relay_dead: Family::default(),
            receipts_stored: Family::default(),
            receipts_failed: Family::default(),
            outbox_events: Family::default(),
            outbox_oldest: Family::default(),
            receipt_jobs: Family::default(),
            receipt_jobs_oldest: Family::default(),
            pool_connections: Family::default(),
            consumer_lag_events: Family::default(),
            consumer_lag_seconds: Family::default(),
            unsafe_setting: Family::default(),
        };
        let orderflow = registry.sub_registry_with_prefix("orderflow");
        macro_rules! register {
            ($($name:literal $help:literal $metric:ident;)*) => { $(orderflow.register($name, $help, metrics.$metric.clone());)* };
        }
        register! {
            "http_request_seconds" "Time from a request's head to its response's; the route is a pattern such as /api/orders/{id}, or none" requests;
            "http_requests_in_flight" "Requests that have no response yet" requests_in_flight;
            "orders" "Requests to place an order, by outcome" orders;
            "queue_full" "Orders refused because too many waited for their shard; orderflow_orders_total counts them as not_accepted, too" queue_full;
            "feeds" "Open feeds" feeds;
            "connections" "Open connections of all ports but the admin port; further ones wait at the bound of their port: MAX_CONNECTIONS for PORT, 128 for INTERNAL_PORT" connections;
            "connections_refused" "Connections refused because their address had its share (ADDRESS_SHARE)" connections_refused;
            "write_queue" "Orders that wait for a writer of their shard" write_queue;
            "write_queue_seconds" "Time that an order waited for a writer" write_queue_seconds;
            "write_batch_size" "Orders in one statement" batch_size;
            "write_batch_seconds" "Time of one statement with all its retries" batch_seconds;
            "relay_leads" "1 if this process publishes the shard's events, else 0; the sum over all producers must be 1" relay_leads;
            "relay_batch_size" "Events in one Kafka transaction" relay_batch_size;
            "relay_events" "Events published" relay_events;
            "relay_dead" "Events that Kafka refused for good; they are in the table outbox_dead, and someone has to act" relay_dead;
            "receipts_stored" "Receipts written" receipts_stored;
            "receipts_failed" "Failed tries to write a receipt; they are repeated" receipts_failed;
            "outbox_events" "Events that are not published, counted up to 10000, read every 15 s; NaN: the shard does not answer" outbox_events;
            "outbox_oldest_seconds" "Age of the oldest event that is not published, read every 15 s; 0: none waits, NaN: the shard does not answer" outbox_oldest;
            "receipt_jobs" "Receipts that are not written, counted up to 10000, read every 15 s; NaN: the shard does not answer" receipt_jobs;
            "receipt_jobs_oldest_seconds" "Age of the oldest order whose receipt is not written, read every 15 s; 0: none waits, NaN: the shard does not answer" receipt_jobs_oldest;
            "pool_connections" "Connections for reading, by state, read every 15 s" pool_connections;
            "consumer_lag_events" "Events of the partition that are not notified yet, read every 15 s; exact up to 100, beyond that offsets; NaN: it could not be read. Each producer reports the same" consumer_lag_events;
            "consumer_lag_seconds" "Age of the oldest event of the partition that is not notified yet, read every 15 s; 0: none waits, NaN: it could not be read. Each producer reports the same" consumer_lag_seconds;
            "unsafe_setting" "1 if this setting of the shard's Postgres can lose acknowledged orders (fsync, full_page_writes, or with a standby synchronous_standby_names); read at each connect" unsafe_setting;
        }
        // From the start, so that `increase` sees the first of each.
        for outcome in OrderOutcome::ALL {
            let _ = metrics.orders.get_or_create(&OutcomeLabel { outcome });
        }
        metrics
    }

    pub fn backlog(&self, shard: &str) -> BacklogMetrics {
        let label = ShardLabel { shard: shard.to_owned() };
        let pool = |state| self.pool_connections.get_or_create_owned(&PoolLabels { shard: shard.to_owned(), state });
        BacklogMetrics {
            outbox_events: self.outbox_events.get_or_create_owned(&label),
            receipt_jobs: self.receipt_jobs.get_or_create_owned(&label),
            pool_in_use: pool(PoolState::in_use),
            pool_idle: pool(PoolState::idle),
            outbox_oldest: self.outbox_oldest.get_or_create_owned(&label),
            receipt_jobs_oldest: self.receipt_jobs_oldest.get_or_create_owned(&label),
        }
    }

    pub fn set_lag(&self, partition: i32, events: f64, seconds: f64) {
        let label = PartitionLabel { partition };
        self.consumer_lag_events.get_or_create(&label).set(events);
        self.consumer_lag_seconds.get_or_create(&label).set(seconds);
    }

    pub fn shard(&self, name: &str) -> ShardMetrics {
        let label = ShardLabel { shard: name.to_owned() };
        ShardMetrics {
            write_queue: self.write_queue.get_or_create_owned(&label),
            write_queue_seconds: self.write_queue_seconds.get_or_create_owned(&label),
            batch_size: self.batch_size.get_or_create_owned(&label),
            batch_seconds: self.batch_seconds.get_or_create_owned(&label),
            relay_leads: self.relay_leads.get_or_create_owned(&label),
            relay_batch_size: self.relay_batch_size.get_or_create_owned(&label),
            relay_events: self.relay_events.get_or_create_owned(&label),
            relay_dead: self.relay_dead.get_or_create_owned(&label),
            receipts_stored: self.receipts_stored.get_or_create_owned(&label),
            receipts_failed: self.receipts_failed.get_or_create_owned(&label),
            unsafe_settings: UnsafeSettings {
                shard: name.to_owned(),
                metric: self.unsafe_setting.clone(),
                last: Arc::default(),
            },
        }
    }
}

/// Counts one more in a gauge until it is dropped.
pub struct Counted(Gauge);

impl Counted {
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
