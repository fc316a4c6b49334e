//! The one place where a Postgres connection is built.

use std::time::Duration;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection, PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Longest wait for a connection: TCP, TLS and log-in together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads `postgres://user:password@host:port/database[?sslmode=…&sslrootcert=…]`. The error names `variable` and never
/// shows its value.
pub fn options(variable: &str, dsn: &SecretString, application: &str) -> anyhow::Result<PgConnectOptions> {
    let dsn = dsn.expose_secret();
    let is_postgres = dsn.starts_with("postgres://") || dsn.starts_with("postgresql://");
    let options: Option<PgConnectOptions> = is_postgres.then(|| dsn.parse().ok()).flatten();
    let options =
        options.with_context(|| format!("{variable}: not a URL like postgres://USER:PASSWORD@HOST/DATABASE"))?;
    // The server drops a session whose client vanished without a word (frozen node, cut cable) after about 5 s, so that
    // neither its locks nor its half-done work outlive it for long.
    let server_side = [
        ("tcp_keepalives_idle", "2"),
        ("tcp_keepalives_interval", "1"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "5000"),
    ];
    Ok(options.application_name(application).options(server_side).disable_statement_logging())
}

/// One connection, or an error within [`CONNECT_TIMEOUT`].
pub async fn connect(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options)).await {
        Ok(connection) => connection.context("connect to Postgres"),
        Err(_) => anyhow::bail!("connect to Postgres: no answer within {} s", CONNECT_TIMEOUT.as_secs()),
    }
}

/// The bounds of a pool: connections are made when they are first needed, and dropped when nobody needs them.
pub fn pool_options(most: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(most)
        .acquire_timeout(CONNECT_TIMEOUT)
        .idle_timeout(Duration::from_secs(300))
        .max_lifetime(Duration::from_secs(1800))
}
