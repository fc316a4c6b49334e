//! A few connections to one database, for questions of which each has a deadline. sqlx has a pool, too, but that one asks a connection
//! whether it is alive each time that it is put back: a second round trip for each question.

use std::{pin::Pin, time::Duration};

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::timeout;

use super::{CONNECT_TIMEOUT, ConnectError, Refusal, connect, is_stale_plan};

/// A connection that was lent so recently is taken for alive. One that is not costs a question its answer.
const FRESH: Duration = Duration::from_millis(100);

/// Longest wait for a sign of life of another one; then there is still time to connect anew.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// One that was not lent for longer is replaced unasked: something on the way may have dropped it without a word.
const LONGEST_IDLE: Duration = Duration::from_secs(300);

const LONGEST_LIFE: Duration = Duration::from_secs(1800);

/// Why a question has no answer.
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
                // An answer that cannot be read says nothing about the server.
                None => matches!(
                    error,
                    sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::Configuration(_)
                ),
            },
        }
    }
}

/// Connections that are made when they are first needed. Clones share them.
#[derive(Clone)]
pub struct Pool(managed::Pool<Connector>);

impl Pool {
    /// At most `most` connections, of which each has passed `check` when it was new.
    pub fn new(
        most: usize,
        options: PgConnectOptions,
        check: impl Fn(&mut PgConnection) -> Checked<'_> + Send + Sync + 'static,
    ) -> Self {
        let connector = Connector { options, check: Box::new(check) };
        // The one that was lent last is lent next: the fewest stay fresh, the others grow old.
        let pool = managed::Pool::builder(connector).max_size(most).queue_mode(QueueMode::Lifo).build();
        Self(pool.expect("without timeouts of its own a pool needs no runtime"))
    }

    /// Asks over one of the connections, within `longest`, the wait for it included. A connection whose answer was not awaited to the
    /// end, or was an error, is not lent again, because an answer may still arrive over it. A question with a stale plan,
    /// which the server refused before it ran because of a migration, is asked once more.
    pub async fn ask<T>(
        &self,
        longest: Duration,
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> Result<T, AskError> {
        let asked = async {
            let mut lent = Lent(Some(self.0.get().await.map_err(|error| match error {
                PoolError::Backend(error) => error,
                other => unreachable!("it is never closed, and has no timeouts or hooks: {other}"),
            })?));
            let connection = lent.0.as_mut().expect("lent a line above");
            let answer = match question.clone()(connection).await {
                Err(error) if is_stale_plan(&error) => {
                    connection.clear_cached_statements().await?;
                    question(connection).await?
                }
                answer => answer?,
            };
            drop(lent.0.take());
            Ok(answer)
        };
        timeout(longest, asked).await.unwrap_or(Err(AskError::Timeout(longest)))
    }
}

/// Dropped with a connection in it, it keeps that from being lent again.
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
            return Err(RecycleError::message("it is old"));
        }
        if idle > FRESH {
            match timeout(PING_TIMEOUT, connection.ping()).await {
                Ok(alive) => alive.map_err(AskError::from)?,
                Err(_) => return Err(RecycleError::message("it is silent")),
            }
        }
        Ok(())
    }
}
