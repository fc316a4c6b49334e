//! A pool of connections to one database, for queries with a deadline each. sqlx's own pool pings a connection each
//! time it is returned, which is a second round trip for each query.

use std::{pin::Pin, time::Duration};

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::timeout;

use super::{CONNECT_TIMEOUT, ConnectError, Refusal, connect, is_stale_plan};

/// The longest idle time after which a connection is used without a ping. If it is dead after all, the query fails.
const FRESH: Duration = Duration::from_millis(100);

/// The longest wait for a ping of an idle connection. It leaves time for a new connection.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest idle time of a connection. After it the connection is replaced without a ping, since a device on the way
/// may have dropped it silently.
const LONGEST_IDLE: Duration = Duration::from_secs(300);

/// Longest life of a connection in a pool.
const LONGEST_LIFE: Duration = Duration::from_secs(1800);

/// A reason for a failed query.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl AskError {
    /// Returns true if the whole database is down: it does not answer, or refuses every query.
    pub fn is_down(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::Connect(_) => true,
            Self::Database(error) => match Refusal::from_error(error) {
                Some(refusal) => refusal.is_of_server(),
                // An answer that cannot be read does not mean that the server is down.
                None => matches!(
                    error,
                    sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::Configuration(_)
                ),
            },
        }
    }
}

/// A pool whose connections are made on demand. Clones share the connections.
#[derive(Clone)]
pub struct Pool(managed::Pool<Connector>);

impl Pool {
    /// Creates a pool of at most `most` connections. Each new connection must pass `check`.
    pub fn new(
        most: usize,
        options: PgConnectOptions,
        check: impl Fn(&mut PgConnection) -> Checked<'_> + Send + Sync + 'static,
    ) -> Self {
        let connector = Connector { options, check: Box::new(check) };
        // Last in, first out: as few connections as possible stay in use, and the others expire.
        let pool = managed::Pool::builder(connector).max_size(most).queue_mode(QueueMode::Lifo).build();
        Self(pool.expect("without timeouts of its own a pool needs no runtime"))
    }

    /// Returns the number of connections in use, and of idle ones.
    pub fn occupancy(&self) -> (usize, usize) {
        let status = self.0.status();
        (status.size.saturating_sub(status.available), status.available)
    }

    /// Runs a query on one of the connections within `longest`, including the wait for the connection. A connection
    /// whose query was cancelled or failed is not used again, because an answer may still arrive over it. A query with
    /// a stale plan, which the server refused before it ran because of a migration, is repeated once.
    pub async fn ask<T>(
        &self,
        longest: Duration,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, AskError> {
        let work = async {
            let mut lent = Lent(Some(self.0.get().await.map_err(|error| match error {
                PoolError::Backend(error) => error,
                other => unreachable!("the pool is never closed, and has no timeouts or hooks: {other}"),
            })?));
            let connection = lent.0.as_mut().expect("lent a line above");
            let answer = match query.clone()(connection).await {
                Err(error) if is_stale_plan(&error) => {
                    connection.clear_cached_statements().await?;
                    query(connection).await?
                }
                answer => answer?,
            };
            drop(lent.0.take());
            Ok(answer)
        };
        timeout(longest, work).await.unwrap_or(Err(AskError::Timeout(longest)))
    }
}

/// A guard that removes its connection from the pool if it still has it when it is dropped.
struct Lent(Option<Object<Connector>>);

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(Object::take(connection));
        }
    }
}

pub type Checked<'connection> = Pin<Box<dyn Future<Output = Result<(), sqlx::Error>> + Send + 'connection>>;

struct Connector {
    options: PgConnectOptions,
    check: Box<dyn Fn(&mut PgConnection) -> Checked<'_> + Send + Sync>,
}

impl managed::Manager for Connector {
    type Type = PgConnection;
    type Error = AskError;

    async fn create(&self) -> Result<PgConnection, AskError> {
        let mut connection = connect(&self.options).await?;
        match timeout(CONNECT_TIMEOUT, (self.check)(&mut connection)).await {
            Ok(checked) => checked?,
            Err(_) => return Err(AskError::Timeout(CONNECT_TIMEOUT)),
        }
        Ok(connection)
    }

    async fn recycle(&self, connection: &mut PgConnection, metrics: &Metrics) -> RecycleResult<AskError> {
        let idle = metrics.last_used();
        if idle > LONGEST_IDLE || metrics.age() > LONGEST_LIFE {
            return Err(RecycleError::message("the connection is too old"));
        }
        if idle > FRESH {
            match timeout(PING_TIMEOUT, connection.ping()).await {
                Ok(alive) => alive.map_err(AskError::from)?,
                Err(_) => return Err(RecycleError::message("the connection does not answer a ping")),
            }
        }
        Ok(())
    }
}
