//! Shared parts of the long-running OrderFlow processes: settings, telemetry, the admin port, the state of
//! dependencies, the supervisor of tasks, shutdown, backoff, and the clients of Kafka, S3 and Postgres.

pub mod admin;
pub mod backoff;
pub mod dependency;
pub mod failpoint;
pub mod metrics;
mod plain;
pub mod secret;
pub mod settings;
pub mod shutdown;
pub mod supervisor;
pub mod telemetry;

#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "traces")]
pub mod traces;

pub use backoff::Backoff;
pub use dependency::{Dependencies, Dependency, Need};
pub use prometheus_client as prometheus;
pub use secrecy;
pub use supervisor::{Stage, Supervisor};

/// Chooses the TLS implementation of the whole process. Call it first in `main` and in tests: without it, the first
/// handshake panics if more than one rustls provider is linked.
#[cfg(any(feature = "postgres", feature = "s3", feature = "traces"))]
pub fn install_tls() {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
