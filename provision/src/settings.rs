//! The settings of `orderflow-provision`. The DSNs come from `PG_SHARD1_DSN` … `PG_SHARDn_DSN`, the authorities of
//! their servers from `PG_SHARD1_CA_FILE` … `PG_SHARDn_CA_FILE`.

use std::time::Duration;

use clap::Parser;
use orderflow_core::ShardMap;
use orderflow_service::{kafka, s3, secret::Secrets, telemetry};

use crate::Adopt;

/// Creates, checks or removes everything that an OrderFlow depends on: schemas, bucket and topics. Safe to run
/// repeatedly and concurrently; exits with 1 if anything failed.
///
/// PG_SHARD1_DSN, PG_SHARD2_DSN and so on name the databases, one for each shard. PG_SHARD1_CA_FILE, PG_SHARD2_CA_FILE
/// and so on may name a PEM file with the authorities that sign that server's certificate; an sslmode weaker than
/// verify-ca then becomes verify-full.
#[derive(Clone, Debug, Parser)]
#[command(name = "orderflow-provision", version)]
pub struct Settings {
    /// The shards and their users, as in shard1=A-M+@zoe,shard2=N-Z+*; the inner of two spans counts, and without * all
    /// other users go to the last shard
    #[arg(long, env = "SHARDS", default_value = "shard1=A-M,shard2=N-Z")]
    pub shards: ShardMap,

    /// Owner of everything, NAMESPACE/NAME; resources of another owner are not changed
    #[arg(long, env = "OWNER", default_value = "local/orderflow", value_parser = parse_owner)]
    pub owner: String,

    /// Take over databases, bucket and topics of another owner, and databases of another topic or bucket
    #[arg(long, conflicts_with = "check")]
    pub adopt: bool,

    /// Check only; exits with 1 if anything is missing or differs
    #[arg(long)]
    pub check: bool,

    /// Remove what belongs to OWNER, which must be given: the tables with all orders (never the database), the
    /// receipts, the bucket if it is empty then, the topics, and the consumer group if KAFKA_GROUP_ID is given
    #[arg(long, conflicts_with_all = ["adopt", "check"], requires = "owner")]
    pub remove: bool,

    /// Time to retry while something is unavailable
    #[arg(long, env = "WAIT", value_name = "SECONDS", default_value_t = 0)]
    pub wait: u32,

    /// Partitions of the events' topic and minimum of the notifications'; never changed after creation
    #[arg(long, env = "KAFKA_PARTITIONS", default_value_t = 6, value_parser = clap::value_parser!(i32).range(1..=1000))]
    pub partitions: i32,

    /// Replication factor of a new topic. Default: the brokers' own
    #[arg(long, env = "KAFKA_REPLICATION_FACTOR", value_parser = clap::value_parser!(i32).range(1..=32767))]
    pub replication_factor: Option<i32>,

    #[command(flatten)]
    pub kafka: kafka::Settings,

    /// Consumer group to remove with the topics; not used otherwise
    #[arg(long, env = "KAFKA_GROUP_ID", help_heading = "Kafka")]
    pub kafka_group_id: Option<String>,

    #[command(flatten)]
    pub s3: s3::Settings,

    #[command(flatten)]
    pub telemetry: telemetry::Settings,
}

impl Secrets for Settings {
    fn read_secrets(&mut self) -> Result<(), String> {
        self.kafka.read_secrets()?;
        self.s3.read_secrets()
    }
}

impl Settings {
    pub fn adopt(&self) -> Adopt<'static> {
        if self.adopt { Adopt::Any } else { Adopt::Nothing }
    }

    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.wait.into())
    }
}

fn parse_owner(text: &str) -> Result<String, &'static str> {
    // The characters that bucket tags and Kubernetes names allow.
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    };
    match text.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) && text.len() <= 256 => Ok(text.to_owned()),
        _ => Err("expected NAMESPACE/NAME of letters, digits, '-', '.' and '_', at most 256 characters"),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    #[test]
    fn the_settings_are_consistent() {
        Settings::command().debug_assert();
    }

    #[test]
    fn a_removal_requires_an_explicit_owner() {
        let parse = |arguments: &[&str]| {
            // Independent of the environment of the tests.
            let command = Settings::command().mut_arg("owner", |owner| owner.env(None::<&str>));
            let arguments = std::iter::once("orderflow-provision").chain(arguments.iter().copied());
            command.try_get_matches_from(arguments).map(drop).map_err(|error| error.kind())
        };
        assert_eq!(parse(&["--remove"]), Err(ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&["--remove", "--owner", "a/b"]), Ok(()));
        for other in ["--check", "--adopt"] {
            assert_eq!(parse(&["--remove", "--owner", "a/b", other]), Err(ErrorKind::ArgumentConflict));
        }
    }

    #[test]
    fn an_owner_is_a_namespace_and_a_name() {
        assert!(parse_owner("local/orderflow").is_ok());
        for text in ["", "/", "local", "local/", "/orderflow", "a/b/c", "a b/c", "a/ü"] {
            assert!(parse_owner(text).is_err(), "{text:?}");
        }
    }
}
