//! Every setting of the producer: a flag, an environment variable, a default and a line of doc each.

use std::time::Duration;

use anyhow::ensure;
use clap::{Parser, Subcommand};
use orderflow_core::ShardMap;
use orderflow_service::{admin, kafka, s3, telemetry};

use crate::verify;

/// OrderFlow's REST API: stores orders on their users' shards, publishes their events, writes their receipts.
///
/// The shards' databases are given by the environment alone, since a DSN holds a password: PG_SHARD1_DSN,
/// PG_SHARD2_DSN, … one for each shard of SHARDS, as in postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require.
/// Beside each, PG_SHARD1_CA_FILE, PG_SHARD2_CA_FILE, … may name a PEM file with the authorities that sign that server's
/// certificate; an sslmode weaker than verify-ca then becomes verify-full.
#[derive(Clone, Debug, Parser)]
#[command(name = "orderflow-producer", version)]
pub struct Settings {
    /// Port of the API and the dashboard; 0 takes a free one
    #[arg(long, env = "PORT", default_value_t = 8080, help_heading = "Addresses")]
    pub port: u16,

    #[command(flatten)]
    pub admin: admin::Settings,

    /// Origins whose pages may call the API, comma-separated; the dashboard needs none
    #[arg(long, env = "CORS_ALLOW_ORIGIN", value_delimiter = ',', help_heading = "API")]
    pub cors_allow_origin: Vec<String>,

    /// Longest wait of an order for its shard, in milliseconds; then 503
    #[arg(long, env = "ORDER_TIMEOUT_MS", default_value_t = 2000, help_heading = "API")]
    pub order_timeout_ms: u64,

    /// Connections served at once; further ones wait to be accepted
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 4096, help_heading = "API")]
    pub max_connections: usize,

    /// Feeds (server-sent events) served at once; a further one gets 503
    #[arg(long, env = "MAX_FEEDS", default_value_t = 256, help_heading = "API")]
    pub max_feeds: usize,

    /// The shards and the first letters of their users; what no range names goes to the last
    #[arg(long, env = "SHARDS", default_value = "shard1=A-M,shard2=N-Z", help_heading = "Shards")]
    pub shards: ShardMap,

    /// Orders that may wait for one shard; over it 503
    #[arg(long, env = "SHARD_QUEUE", default_value_t = 4096, help_heading = "Shards")]
    pub shard_queue: usize,

    /// Writers (one connection each) per shard
    #[arg(long, env = "SHARD_WRITERS", default_value_t = 2, help_heading = "Shards")]
    pub shard_writers: usize,

    /// Connections for reading per shard
    #[arg(long, env = "SHARD_READERS", default_value_t = 8, help_heading = "Shards")]
    pub shard_readers: u32,

    #[command(flatten)]
    pub kafka: kafka::Settings,

    /// Group of the consumers that notify
    #[arg(long, env = "KAFKA_GROUP_ID", default_value = "order-consumer-group", help_heading = "Kafka")]
    pub kafka_group_id: String,

    /// Let the API send dead letters back to where they came from
    #[arg(long, env = "DEAD_LETTER_REPLAY", default_value_t = false, help_heading = "API")]
    pub dead_letter_replay: bool,

    #[command(flatten)]
    pub s3: s3::Settings,

    /// How long a claimed receipt is left to its worker, in milliseconds
    #[arg(long, env = "RECEIPT_LEASE_MS", default_value_t = 60_000, help_heading = "S3")]
    pub receipt_lease_ms: u64,

    #[command(flatten)]
    pub telemetry: telemetry::Settings,

    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Compare the orders of all shards with their receipts, events and notifications, while everything runs
    ///
    /// The exit code is 0 if nothing is wrong, or all that was is queued again; 1 if something is missing, different, there
    /// twice or of no order; 2 if it could not be found out.
    Verify(verify::Options),
}

impl Settings {
    pub fn order_timeout(&self) -> Duration {
        Duration::from_millis(self.order_timeout_ms)
    }

    pub fn receipt_lease(&self) -> Duration {
        Duration::from_millis(self.receipt_lease_ms)
    }

    /// Refuses combinations that could not work, by name.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=16).contains(&self.shard_writers), "SHARD_WRITERS: must be from 1 to 16");
        ensure!((1..=1_000_000).contains(&self.shard_queue), "SHARD_QUEUE: must be from 1 to 1000000");
        ensure!((2..=256).contains(&self.shard_readers), "SHARD_READERS: must be from 2 to 256");
        ensure!((10..=60_000).contains(&self.order_timeout_ms), "ORDER_TIMEOUT_MS: must be from 10 to 60000");
        ensure!(self.max_connections > 0, "MAX_CONNECTIONS: must be at least 1");
        let longest = crate::receipts::longest_batch(self.s3.timeout());
        ensure!(
            self.receipt_lease() > longest,
            "RECEIPT_LEASE_MS: must be more than {} (what one claim takes when each PUT runs into S3_TIMEOUT_MS)",
            longest.as_millis()
        );
        Ok(())
    }
}
