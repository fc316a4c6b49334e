//! What `GET /api/stats` answers.

use orderflow_core::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Snapshot {
    /// When all had answered, or not within their deadlines
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Of the feed of the process that answers
    pub epoch: Uuid,
    pub notifications: Notifications,
    /// All, in their order
    pub shards: Vec<ShardFigures>,
    pub s3: Dependency,
    pub kafka: Dependency,
    pub consumer: Consumer,
    /// Of the topic of orders; empty while Kafka is down
    pub partitions: Vec<Partition>,
    pub dead_letters: DeadLetterCounts,
}

/// Of all users, as the feed has them
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct Notifications {
    /// Since the epoch began
    pub total: u64,
    /// Over the last 10 s
    pub per_second: f64,
}

/// All numbers are null while the shard is down
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ShardFigures {
    #[schema(example = "shard1")]
    pub name: String,
    /// First letters of its users
    #[schema(example = "A-M")]
    pub users: String,
    pub up: bool,
    /// Why not
    pub reason: Option<String>,
    /// Exact up to 10000, then an estimate
    pub orders: Option<i64>,
    pub orders_estimated: Option<bool>,
    /// Events that wait to be published, counted up to 10000
    pub outbox: Option<i64>,
    /// Of the oldest; null if none waits
    pub outbox_age_seconds: Option<f64>,
    /// Receipts that wait to be written, counted up to 10000
    pub receipt_jobs: Option<i64>,
    /// Of the oldest; null if none waits
    pub receipt_jobs_age_seconds: Option<f64>,
    /// Events that Kafka refuses for good, counted up to 10000
    pub dead_events: Option<i64>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Dependency {
    pub up: bool,
    /// Why not
    pub reason: Option<String>,
}

/// The group that turns events into notifications
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Consumer {
    #[schema(example = "order-consumer-group")]
    pub group: String,
    /// That Kafka counts now; one that was killed for 6 s more
    pub members: Option<usize>,
    /// Events of all partitions that are not notified yet
    pub lag: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Partition {
    pub partition: i32,
    /// Offset behind the last committed event
    pub end: i64,
    /// Offset of the next event to be notified; null if none ever was
    pub committed: Option<i64>,
    /// Events that are not notified yet; null if unknown
    pub lag: Option<i64>,
}

/// Null while Kafka is down, or until they are counted
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub struct DeadLetterCounts {
    /// That were not replayed yet
    pub waiting: Option<u64>,
    /// That Kafka has
    pub total: Option<u64>,
}

impl Dependency {
    pub fn up() -> Self {
        Self { up: true, reason: None }
    }

    /// `reason` must hold no secret.
    pub fn down(reason: String) -> Self {
        Self { up: false, reason: Some(reason) }
    }
}
