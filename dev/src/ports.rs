//! The ports of `up`, each with its variable. They are checked before anything is started; all busy ones are reported
//! at once.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::{ArgAction, Args, builder::FalseyValueParser};
use orderflow_testbed::port;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Ports (all on 127.0.0.1)")]
#[group(skip)]
pub(super) struct Ports {
    /// Port of the API and the dashboard
    #[arg(long, env = "PORT", default_value_t = 8080)]
    pub(super) port: u16,
    /// Port of the producer's health and metrics
    #[arg(long, env = "ADMIN_PORT", default_value_t = 9464)]
    pub(super) admin_port: u16,
    /// Port of the consumer's health and metrics
    #[arg(long, env = "CONSUMER_ADMIN_PORT", default_value_t = 9465)]
    pub(super) consumer_admin_port: u16,
    /// Port of the controls, which stop and start parts
    #[arg(long, env = "CONTROLS_PORT", default_value_t = 8082)]
    pub(super) controls_port: u16,
    /// Port of shard 1's Postgres
    #[arg(long, env = "PG_SHARD1_PORT", default_value_t = 15432)]
    pub(super) pg_shard1_port: u16,
    /// Port of shard 2's Postgres
    #[arg(long, env = "PG_SHARD2_PORT", default_value_t = 15433)]
    pub(super) pg_shard2_port: u16,
    /// Port of Kafka
    #[arg(long, env = "KAFKA_PORT", default_value_t = 9092)]
    pub(super) kafka_port: u16,
    /// Port of S3
    #[arg(long, env = "S3_PORT", default_value_t = 4566)]
    pub(super) s3_port: u16,
    /// Port of Prometheus, which runs with MONITORING=1
    #[arg(long, env = "PROMETHEUS_PORT", default_value_t = 9090)]
    pub(super) prometheus_port: u16,
    /// Run a Prometheus with the alerts of the chart orderflow-monitoring
    #[arg(long, env = "MONITORING", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue, help_heading = "Monitoring")]
    pub(super) monitoring: bool,
}

impl Ports {
    /// Checks that all ports differ and are free.
    ///
    /// # Errors
    /// Names each port that is given twice or is busy, with its variable and, if visible, the process that holds it.
    pub(super) fn check(&self) -> Result<()> {
        let mut variables: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
        for (variable, port) in self.named() {
            variables.entry(port).or_default().push(variable);
        }
        let problems: Vec<String> = variables.iter().filter_map(|(port, names)| problem(*port, names)).collect();
        if !problems.is_empty() {
            bail!(
                "nothing was started:\n  {}\nchoose other ports with these variables, or stop the processes that hold them",
                problems.join("\n  ")
            );
        }
        Ok(())
    }

    fn named(&self) -> Vec<(&'static str, u16)> {
        let mut named = vec![
            ("PORT", self.port),
            ("ADMIN_PORT", self.admin_port),
            ("CONSUMER_ADMIN_PORT", self.consumer_admin_port),
            ("CONTROLS_PORT", self.controls_port),
            ("PG_SHARD1_PORT", self.pg_shard1_port),
            ("PG_SHARD2_PORT", self.pg_shard2_port),
            ("KAFKA_PORT", self.kafka_port),
            ("S3_PORT", self.s3_port),
        ];
        if self.monitoring {
            named.push(("PROMETHEUS_PORT", self.prometheus_port));
        }
        named
    }
}

fn problem(number: u16, variables: &[&str]) -> Option<String> {
    let variables_given = variables.join(", ");
    if number == 0 {
        return Some(format!("{variables_given}: 0 is not allowed, because the addresses must stay the same"));
    }
    if variables.len() > 1 {
        return Some(format!("{variables_given}: all are {number}"));
    }
    if port::is_free(number) {
        return None;
    }
    let holder = port::holder(number).unwrap_or_else(|| "a process that this user cannot see".to_owned());
    Some(format!("{variables_given}: port {number} is held by {holder}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn all_busy_and_duplicate_ports_are_reported_at_once() {
        let holder = TcpListener::bind("127.0.0.1:0").expect("listen");
        let busy = holder.local_addr().expect("read address").port();
        let free = || port::free().expect("find a port");
        let twice = free();
        let ports = Ports {
            port: busy,
            admin_port: free(),
            consumer_admin_port: free(),
            controls_port: free(),
            pg_shard1_port: twice,
            pg_shard2_port: twice,
            kafka_port: free(),
            s3_port: 0,
            prometheus_port: busy,
            monitoring: false,
        };
        let error = ports.check().expect_err("busy ports were accepted").to_string();
        assert!(error.contains(&format!("PORT: port {busy} is held by")), "{error}");
        assert!(error.contains("PG_SHARD1_PORT, PG_SHARD2_PORT: all are"), "{error}");
        assert!(error.contains("S3_PORT: 0"), "{error}");
        assert!(!error.contains("KAFKA_PORT"), "{error}");
    }
}
