//! What a running `up` writes down about itself: each process with its pid and how to ask whether it is well.

use anyhow::Result;
use orderflow_testbed::{kafka, localstack, postgres, product};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// The pid of the `up` that supervises the rest.
    pub(super) pid: u32,
    /// Where its controls are.
    #[serde(default)]
    pub(super) controls: String,
    pub(super) processes: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) address: String,
    /// Switched off by a person: it does not run, and is not to.
    #[serde(default)]
    pub(super) switched_off: bool,
    pub(super) probe: Probe,
}

/// How to ask a process whether it is well.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Probe {
    Postgres { port: u16 },
    Kafka { bootstrap: String },
    LocalStack { endpoint: String },
    Ready { admin_url: String },
}

impl Probe {
    pub(super) async fn ask(&self) -> Result<()> {
        match self {
            Self::Postgres { port } => postgres::probe(*port).await,
            Self::Kafka { bootstrap } => kafka::probe(bootstrap).await,
            Self::LocalStack { endpoint } => localstack::probe(endpoint).await,
            Self::Ready { admin_url } => product::probe(admin_url, "/readyz").await,
        }
    }
}
