//! The state that all handlers share.

use std::{sync::Arc, time::Duration};

use orderflow_service::shutdown::CancellationToken;

use super::{known_names::KnownNames, memory::Memory, page_config::Config};
use crate::{
    dead_letters,
    feed::Feed,
    metrics::Metrics,
    quota::Quota,
    shard::{Shards, maps::Maps},
    stats::Stats,
    trail::Trails,
};

/// The shared state. One pointer: axum clones it several times for each request.
pub type Shared = Arc<App>;

pub struct App {
    pub maps: Maps,
    pub shards: Shards,
    pub s3: aws_sdk_s3::Client,
    pub bucket: Arc<str>,
    pub dead_letters: dead_letters::Handle,
    pub feed: Feed,
    /// A quota with one unit for each feed that may be open.
    pub feeds: Quota,
    pub memory: Memory,
    pub stats: Stats,
    pub trails: Arc<Trails>,
    pub config: Config,
    pub parameters: KnownNames,
    pub deadline: Duration,
    pub metrics: Metrics,
    /// Ends the feeds at once.
    pub stop: CancellationToken,
}

/// The users that a port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Clients: they place orders, and read those of a user they name, one by its id, and receipts.
    Public,
    /// Clients and operators: also the dashboard, the orders of all users, trails, figures, the feed and dead letters.
    Internal,
}
