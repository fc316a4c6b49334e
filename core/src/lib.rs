//! The types of the domain, without I/O: orders, shards, events, notifications, receipts. A value of one of these types
//! is valid, because parsing is the only way to get one.

pub mod event;
pub mod field;
pub mod idempotency;
pub mod json;
pub mod money;
pub mod number;
pub mod order;
pub mod partition;
pub mod plain;
pub mod receipt;
pub mod receipt_key;
pub mod schema;
pub mod shard;
pub mod timestamp;
pub mod topic;

pub use event::{Notification, OrderCreated};
pub use field::{OrderId, ProductName, Quantity, UserId};
pub use idempotency::{Fingerprint, IdempotencyKey};
pub use money::Money;
pub use order::{NewOrder, Order, Violation};
pub use shard::{FIRST_EPOCH, MapEpoch, RangeId, Routes, Shard, ShardIndex, ShardMap, ShardMaps, ShardNumber};
pub use timestamp::Timestamp;
pub use topic::Topics;
