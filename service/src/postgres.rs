//! The one place where a Postgres connection is built.

use std::time::Duration;

use anyhow::Context;
use orderflow_core::{Shard, ShardMap};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// Longest wait for a connection: TCP, TLS and log-in together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The environment variable with the DSN of a shard: `PG_SHARD1_DSN` of the first.
pub fn dsn_variable(shard: &Shard) -> String {
    format!("PG_SHARD{}_DSN", shard.index.number())
}

/// Reads the DSN of each shard from the environment, in the order of the map. They have no flags: what is on a command line,
/// everybody on the machine can read. The error names every variable that is missing.
pub fn shard_dsns(map: &ShardMap) -> anyhow::Result<Vec<SecretString>> {
    read_shard_dsns(map, |variable| std::env::var(variable).ok())
}

fn read_shard_dsns(map: &ShardMap, read: impl Fn(&str) -> Option<String>) -> anyhow::Result<Vec<SecretString>> {
    let (mut dsns, mut missing) = (Vec::new(), Vec::new());
    for shard in map {
        let variable = dsn_variable(shard);
        match read(&variable).filter(|dsn| !dsn.trim().is_empty()) {
            Some(dsn) => dsns.push(SecretString::from(dsn)),
            None => missing.push(format!("{variable} ({})", shard.info())),
        }
    }
    anyhow::ensure!(missing.is_empty(), "not set: {}", missing.join(", "));
    Ok(dsns)
}

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

/// Why a question to a pool has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

/// Asks over a connection of the pool, at most for `timeout`. A connection whose answer was not awaited to the end is not
/// put back: nobody knows when, if ever, it would be free.
pub async fn ask<T>(
    pool: &PgPool,
    timeout: Duration,
    question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, AskError> {
    struct Lent(Option<PoolConnection<Postgres>>);
    impl Drop for Lent {
        fn drop(&mut self) {
            if let Some(connection) = self.0.take() {
                drop(connection.detach());
            }
        }
    }
    let asked = async {
        let mut lent = Lent(Some(pool.acquire().await?));
        let answer = match &mut lent.0 {
            Some(connection) => question(connection).await?,
            None => unreachable!("lent a line above"),
        };
        drop(lent.0.take());
        Ok(answer)
    };
    tokio::time::timeout(timeout, asked).await.unwrap_or(Err(AskError::Timeout(timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_dsn_is_named() {
        let map: ShardMap = "shard1=A-H,shard2=I-P,shard3=Q-Z".parse().unwrap();
        let read = |variable: &str| match variable {
            "PG_SHARD1_DSN" => Some("postgres://one/orders".to_owned()),
            "PG_SHARD3_DSN" => Some(" ".to_owned()),
            _ => None,
        };
        let error = read_shard_dsns(&map, read).unwrap_err().to_string();
        assert_eq!(error, "not set: PG_SHARD2_DSN (shard2 (I-P)), PG_SHARD3_DSN (shard3 (Q-Z))");
        assert_eq!(read_shard_dsns(&map, |variable| Some(variable.to_owned())).unwrap().len(), 3);
    }
}
