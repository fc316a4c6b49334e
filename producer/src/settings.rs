//! Every setting of the producer: a flag, an environment variable, a default and a line of doc each.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use orderflow_core::ShardMap;
use orderflow_service::{admin, kafka, s3, secret::Secrets, telemetry, traces};

/// The settings of a producer. [`Settings::check`] refuses combinations that cannot work.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Port of the API and, without INTERNAL_PORT, of the dashboard; 0 chooses a free one
    #[arg(long, env = "PORT", default_value_t = 8080, help_heading = "Addresses")]
    pub port: u16,

    /// Port of the dashboard and of all routes; PORT then serves only clients: place an order, a user's orders, an
    /// order, its receipt. 0 chooses a free one; absent: PORT serves all
    #[arg(long, env = "INTERNAL_PORT", help_heading = "Addresses")]
    pub internal_port: Option<u16>,

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

    /// Memory for large bodies in flight (lists being made or not read yet, large requests), in MiB; beyond it 503
    #[arg(long, env = "BODY_MEMORY_MB", default_value_t = 64, help_heading = "API")]
    pub body_memory_mb: usize,

    /// Percent of the connections, feeds, trails, lists of dead letters and body memory that one client address may
    /// hold. Set it below 100 only where clients connect directly: behind a proxy all share its address
    #[arg(long, env = "ADDRESS_SHARE", default_value_t = 100, help_heading = "API")]
    pub address_share: u8,

    /// Let everyone who can reach the API replay dead letters
    #[arg(long, env = "DEAD_LETTER_REPLAY", default_value_t = false, help_heading = "Dashboard")]
    pub dead_letter_replay: bool,

    /// Origin of the controls that stop and start a local stack's services, as in http://127.0.0.1:8082; the dashboard
    /// may call it
    #[arg(long, env = "CONTROLS_URL", value_name = "ORIGIN", help_heading = "Dashboard")]
    pub controls_url: Option<String>,

    /// Address of a trace in Jaeger, Tempo or Grafana, as in http://jaeger.example/trace/{trace_id}; an order's trail then
    /// links to it
    #[arg(long, env = "TRACE_URL_TEMPLATE", value_name = "URL", help_heading = "Dashboard")]
    pub trace_url_template: Option<String>,

    /// The shards and their users, as in shard1=A-M+@zoe,shard2=N-Z+*; the inner of two spans counts, and without * all
    /// other users go to the last shard
    #[arg(long, env = "SHARDS", default_value = "shard1=A-M,shard2=N-Z", help_heading = "Shards")]
    pub shards: ShardMap,

    /// Orders that may wait for one shard; beyond it 503
    #[arg(long, env = "SHARD_QUEUE", default_value_t = 4096, help_heading = "Shards")]
    pub shard_queue: usize,

    /// Writers (one connection each) per shard
    #[arg(long, env = "SHARD_WRITERS", default_value_t = 1, help_heading = "Shards")]
    pub shard_writers: usize,

    /// Connections for reading per shard; at 2, receipts get a third one of their own
    #[arg(long, env = "SHARD_READERS", default_value_t = 8, help_heading = "Shards")]
    pub shard_readers: usize,

    #[command(flatten)]
    pub kafka: kafka::Settings,

    /// Consumer group whose progress is shown and verified
    #[arg(long, env = "KAFKA_GROUP_ID", default_value = "order-consumer-group", help_heading = "Kafka")]
    pub kafka_group_id: String,

    #[command(flatten)]
    pub s3: s3::Settings,

    /// Lease of a claimed receipt job, in milliseconds: until it ends no other worker claims the job
    #[arg(long, env = "RECEIPT_LEASE_MS", default_value_t = 60_000, help_heading = "S3")]
    pub receipt_lease_ms: u64,

    #[command(flatten)]
    pub telemetry: telemetry::Settings,

    #[command(flatten)]
    pub traces: traces::Settings,
}

impl Secrets for Settings {
    fn read_secrets(&mut self) -> Result<(), String> {
        self.kafka.read_secrets()?;
        self.s3.read_secrets()
    }
}

impl Settings {
    pub fn order_timeout(&self) -> Duration {
        Duration::from_millis(self.order_timeout_ms)
    }

    pub fn receipt_lease(&self) -> Duration {
        Duration::from_millis(self.receipt_lease_ms)
    }

    /// Returns an error that names the first setting that cannot work.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((1..=16).contains(&self.shard_writers), "SHARD_WRITERS: must be from 1 to 16");
        ensure!((1..=1_000_000).contains(&self.shard_queue), "SHARD_QUEUE: must be from 1 to 1000000");
        ensure!((2..=256).contains(&self.shard_readers), "SHARD_READERS: must be from 2 to 256");
        ensure!((10..=60_000).contains(&self.order_timeout_ms), "ORDER_TIMEOUT_MS: must be from 10 to 60000");
        ensure!((1..=1_000_000).contains(&self.max_connections), "MAX_CONNECTIONS: must be from 1 to 1000000");
        ensure!((1..=100_000).contains(&self.max_feeds), "MAX_FEEDS: must be from 1 to 100000");
        ensure!((8..=65_536).contains(&self.body_memory_mb), "BODY_MEMORY_MB: must be from 8 to 65536");
        ensure!((1..=100).contains(&self.address_share), "ADDRESS_SHARE: must be from 1 to 100");
        ensure!((1..=600_000).contains(&self.s3.s3_timeout_ms), "S3_TIMEOUT_MS: must be from 1 to 600000");
        let is_shared = |port: u16| port != 0 && (port == self.port || port == self.admin.admin_port);
        ensure!(
            !self.internal_port.is_some_and(is_shared),
            "INTERNAL_PORT: must be another port than PORT and ADMIN_PORT"
        );
        if let Some(endpoint) = &self.s3.s3_endpoint {
            let host = ["http://", "https://"].iter().find_map(|scheme| endpoint.strip_prefix(scheme));
            ensure!(
                host.is_some_and(|host| !host.is_empty()),
                "S3_ENDPOINT: must be a URL, as in http://localhost:4566"
            );
        }
        if let Some(template) = &self.trace_url_template {
            let is_web = template.starts_with("http://") || template.starts_with("https://");
            ensure!(
                is_web && template.contains("{trace_id}"),
                "TRACE_URL_TEMPLATE: {template:?} is not an http:// or https:// address with {{trace_id}} in it"
            );
        }
        if let Some(url) = &self.controls_url {
            ensure!(is_origin(url), "CONTROLS_URL: must be an origin, as in http://127.0.0.1:8082");
        }
        let longest = crate::receipts::longest_batch(self.s3.timeout());
        ensure!(
            self.receipt_lease() > longest,
            "RECEIPT_LEASE_MS: must be more than {} (the longest claim: each PUT runs into S3_TIMEOUT_MS)",
            longest.as_millis()
        );
        Ok(())
    }
}

/// Returns true for a scheme, a host and an optional port alone. The URL becomes part of the page's policy, where a
/// blank or a semicolon would begin another rule.
fn is_origin(url: &str) -> bool {
    let Some(place) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else { return false };
    let host = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            if port.parse::<u16>().is_err() {
                return false;
            }
            host
        }
        _ => place,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(plain),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn a_setting_outside_its_bounds_is_refused_by_name() {
        let checked = |flag: &str, value: &str| {
            Cli::try_parse_from(["orderflow-producer", flag, value])
                .unwrap()
                .settings
                .check()
                .map_err(|error| error.to_string())
        };
        for (flag, variable, rule, wrong, right) in [
            ("--body-memory-mb", "BODY_MEMORY_MB", "from 8 to 65536", ["7", "65537"], "8"),
            ("--address-share", "ADDRESS_SHARE", "from 1 to 100", ["0", "101"], "1"),
        ] {
            assert_eq!(checked(flag, right), Ok(()));
            for wrong in wrong {
                assert_eq!(checked(flag, wrong), Err(format!("{variable}: must be {rule}")));
            }
        }
    }

    #[test]
    fn the_controls_url_must_be_an_origin() {
        for url in ["http://127.0.0.1:8082", "http://localhost", "https://dev.example.com:443", "http://[::1]:8082"] {
            assert!(is_origin(url), "{url}");
        }
        for url in [
            "",
            "127.0.0.1:8082",
            "ftp://localhost",
            "http://",
            "http://:80",
            "http://localhost:",
            "http://localhost:808200",
            "http://localhost/",
            "http://a b",
            "http://a;script-src *",
            "http://user@localhost",
            "http://*",
            "http://[::1",
        ] {
            assert!(!is_origin(url), "{url}");
        }
    }
}
