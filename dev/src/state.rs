//! The state that a running `up` records: each process with its pid and a probe of its health.

use anyhow::Result;
use orderflow_testbed::{kafka, localstack, postgres, product};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// The pid of the `up` that supervises the rest.
    pub(super) pid: u32,
    /// The address of its controls.
    #[serde(default)]
    pub(super) controls: String,
    pub(super) processes: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) address: String,
    /// True if a person has switched the part off: it does not run, and must not.
    #[serde(default)]
    pub(super) switched_off: bool,
    pub(super) probe: Probe,
}

/// The probe of a process's health.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Probe {
    Postgres { port: u16 },
    Kafka { bootstrap: String },
    LocalStack { endpoint: String },
    Ready { admin_url: String },
    Prometheus { address: String },
}

impl Probe {
    pub(super) async fn ask(&self) -> Result<()> {
        match self {
            Self::Postgres { port } => postgres::probe(*port).await,
            Self::Kafka { bootstrap } => kafka::probe(bootstrap).await,
            Self::LocalStack { endpoint } => localstack::probe(endpoint).await,
            Self::Ready { admin_url } => product::probe(admin_url, "/readyz").await,
            Self::Prometheus { address } => product::probe(address, "/-/ready").await,
        }
    }
}
