//! Ensures, checks or removes everything that an OrderFlow depends on: the schema of each shard, the bucket for
//! receipts, the four topics, and their ownership. Each target is a module. Each call is idempotent, safe when several
//! run at once, bounded by a deadline, and returns what it found and did.
//!
//! Used by the binary of this crate and by the operator, never by the producer or the consumer.

#![forbid(unsafe_code)]

mod adopt;
pub mod bucket;
pub mod run;
pub mod settings;
pub mod shard;
pub mod topics;

pub use adopt::Adopt;
pub use run::{Line, run};
pub use settings::Settings;

#[cfg(test)]
mod tests {
    use orderflow_core::{ShardMap, Topics};

    use super::*;

    /// Requires futures that a controller can spawn.
    #[test]
    fn every_call_may_move_between_threads() {
        fn is_send(_: &impl Send) {}
        let map: ShardMap = "shard1=A-Z".parse().unwrap();
        let index = map.iter().next().unwrap().index;
        let claim =
            shard::Claim { owner: "a/b", map: &map, index, topic: "orders", bucket: "b", adopt: Adopt::Nothing };
        let options = sqlx::postgres::PgConnectOptions::new();
        is_send(&shard::ensure(&options, &claim));
        is_send(&shard::check(&options, &claim));
        is_send(&shard::remove(&options, &claim));
        is_send(&shard::is_ours(&options, &claim));

        let client = aws_sdk_s3::Client::from_conf(
            aws_sdk_s3::Config::builder().behavior_version(aws_sdk_s3::config::BehaviorVersion::latest()).build(),
        );
        is_send(&bucket::ensure(&client, "b", "us-east-1", "a/b", Adopt::Nothing));
        is_send(&bucket::check(&client, "b", "a/b"));
        is_send(&bucket::remove(&client, "b", "a/b", std::time::Duration::from_secs(60)));

        let wanted = topics::Wanted {
            topics: Topics::named("orders"),
            partitions: 6,
            shards: 1,
            replication_factor: None,
            retention: topics::RETENTION,
            owner: "a/b".to_owned(),
            adopt: Adopt::Nothing,
        };
        let config = rdkafka::ClientConfig::new();
        is_send(&topics::ensure(&config, &wanted));
        is_send(&topics::check(&config, &wanted));
        is_send(&topics::remove(&config, &wanted.topics, "a/b"));
        is_send(&topics::remove_group(&config, "g"));
    }
}
