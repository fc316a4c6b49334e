//! The response of `GET /api/stats`.

use orderflow_core::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Snapshot {
    /// Time at which all parts had answered or run into their deadlines
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Epoch of the feed of the process that answers
    pub epoch: Uuid,
    pub notifications: Notifications,
    /// All shards, in the order of the shard map
    pub shards: Vec<ShardFigures>,
    pub s3: Dependency,
    pub kafka: Dependency,
    pub consumer: Consumer,
    /// Partitions of the topic of orders; empty while Kafka is down
    pub partitions: Vec<Partition>,
    pub dead_letters: DeadLetterCounts,
}

/// Notifications of all users, as counted by the feed
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Notifications {
    /// Notifications since the epoch began
    pub total: u64,
    /// Notifications per second, over the last 10 s
    pub per_second: f64,
}

/// Figures of a shard; all numbers are null while it is down
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ShardFigures {
    #[schema(example = "shard1")]
    pub name: String,
    /// First letters of its users
    #[schema(example = "A-M")]
    pub users: String,
    pub up: bool,
    /// Reason, while `up` is false
    pub reason: Option<String>,
    /// Orders, exact up to 10000, then an estimate
    pub orders: Option<i64>,
    pub orders_estimated: Option<bool>,
    /// Events that wait to be published, counted up to 10000
    pub outbox: Option<i64>,
    /// Age of the oldest event that waits; null if none does
    pub outbox_age_seconds: Option<f64>,
    /// Receipts that wait to be written, counted up to 10000
    pub receipt_jobs: Option<i64>,
    /// Age of the oldest order whose receipt waits; null if none does
    pub receipt_jobs_age_seconds: Option<f64>,
    /// Events that Kafka refused for good, counted up to 10000
    pub dead_events: Option<i64>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Dependency {
    pub up: bool,
    /// Reason, while `up` is false
    pub reason: Option<String>,
}

/// The group that turns events into notifications
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Consumer {
    #[schema(example = "order-consumer-group")]
    pub group: String,
    /// Members that Kafka counts now; a member that was killed counts for 6 s more
    pub members: Option<usize>,
    /// Events of all partitions that are not notified yet
    pub lag: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Partition {
    pub partition: i32,
    /// Offset behind the last committed event
    pub end: i64,
    /// Offset of the next event to be notified; null if none is committed
    pub committed: Option<i64>,
    /// Events that are not notified yet; null if unknown
    pub lag: Option<i64>,
}

/// Numbers of dead letters; null while Kafka is down, or until they are counted
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct DeadLetterCounts {
    /// Dead letters that were not replayed yet
    pub waiting: Option<u64>,
    /// Dead letters that Kafka has
    pub total: Option<u64>,
}

impl Dependency {
    pub fn up() -> Self {
        Self { up: true, reason: None }
    }

    /// Creates the state of a dependency that is down. `reason` must hold no secret.
    pub fn down(reason: String) -> Self {
        Self { up: false, reason: Some(reason) }
    }
}
