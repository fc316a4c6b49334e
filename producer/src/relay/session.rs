//! The relay's one connection to its shard: it holds the lock, reads and deletes the outbox. The server soon ends an
//! idle session, so that a frozen leader loses the lock.

use std::{future::Future, time::Duration};

use anyhow::{Context, bail};
use orderflow_service::{failpoint::held_up, postgres};
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::time::timeout;
use uuid::Uuid;

use super::{outbox::OutboxRow, progress::Progress};
use crate::{
    metrics::UnsafeSettings,
    shard::{
        durability,
        meta::{Expected, MetaError},
    },
};

/// Most events in one Kafka transaction. A backlog drained twice as fast as with 1,000, for the same reasons as with
/// the consumer's batch; the progress record, which lists the events, stays below 200 KB.
pub const BATCH: usize = 4000;

/// Longest time between two uses of a session. The server ends one that is idle for [`IDLE_TIMEOUT`].
pub const KEEPALIVE: Duration = Duration::from_secs(1);

/// Idle time after which the server ends the session and frees its lock.
const IDLE_TIMEOUT: &str = "5s";

/// Longest wait for an answer of the database. Deleting published events may have to scan a large outbox.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The channel on which processes that do not lead notify the leader of new events.
pub const CHANNEL: &str = "orderflow_outbox";

/// Key of the advisory lock (`orderflw` in ASCII): part of the contract between versions.
const LOCK: i64 = 0x6f72_6465_7266_6c77;

pub struct LeaderSession {
    connection: PgConnection,
}

impl LeaderSession {
    pub async fn open(
        options: &PgConnectOptions,
        expected: &Expected,
        unsafe_settings: &UnsafeSettings,
    ) -> anyhow::Result<Self> {
        let options =
            options.clone().application_name("orderflow-relay").options([("idle_session_timeout", IDLE_TIMEOUT)]);
        let mut connection = postgres::connect(&options).await?;
        // A relay that published another shard's events would not fence that shard's relay.
        answer(async { expected.check(&mut connection).await.map(drop).map_err(MetaError::into_sqlx) }).await?;
        // A crash that undoes deletes brings back events, and only the last batch is known to be published.
        answer(durability::require(&mut connection, expected.shard_name(), unsafe_settings)).await?;
        Ok(Self { connection })
    }

    /// Tries to take the lock. Returns true if this session now holds it.
    pub async fn try_lead(&mut self) -> anyhow::Result<bool> {
        let query = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut self.connection);
        answer(query).await
    }

    /// Notifies the leading process of new events.
    pub async fn notify(&mut self) -> anyhow::Result<()> {
        let query = sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(&mut self.connection);
        answer(query).await.map(drop)
    }

    /// Reads the oldest events. It never continues after the last one: a transaction that began earlier may commit
    /// later.
    pub async fn next_batch(&mut self, limit: usize) -> anyhow::Result<Vec<OutboxRow>> {
        self.oldest(limit, 0).await
    }

    /// Reads the batch after a full one that ends with `last` and is not deleted yet. It is also empty if an event
    /// before `last` was committed in the meantime: then only `next_batch` reads the next one.
    pub async fn batch_after(&mut self, last: i64) -> anyhow::Result<Vec<OutboxRow>> {
        held_up("relay::before-read-ahead").await;
        let mut rows = self.oldest(BATCH, BATCH).await?;
        // The skipped rows are that batch, unless a new row among them moved its end behind them.
        if rows.first().is_some_and(|first| first.seq <= last) {
            rows.clear();
        }
        Ok(rows)
    }

    async fn oldest(&mut self, limit: usize, offset: usize) -> anyhow::Result<Vec<OutboxRow>> {
        const SELECT: &str =
            "SELECT seq, event_id, user_id, payload, traceparent FROM outbox ORDER BY seq LIMIT $1 OFFSET $2";
        let query = sqlx::query_as(SELECT).bind(limit as i64).bind(offset as i64);
        answer(query.fetch_all(&mut self.connection)).await
    }

    /// Deletes a published batch. The range makes the index cheaper than reading the whole table; the list selects the
    /// rows of the batch in it. As `= ANY` the list would be scanned for each row once the plan is generic.
    pub async fn delete(&mut self, batch: &[OutboxRow]) -> anyhow::Result<()> {
        const DELETE: &str = "DELETE FROM outbox WHERE seq BETWEEN $1 AND $2 AND seq IN (SELECT unnest($3::bigint[]))";
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(()) };
        let seqs: Vec<i64> = batch.iter().map(|row| row.seq).collect();
        let query = sqlx::query(DELETE).bind(first.seq).bind(last.seq).bind(seqs).execute(&mut self.connection);
        answer(query).await.map(drop)
    }

    /// Deletes the events that the last progress record lists, and returns how many of them still existed.
    pub async fn delete_published(&mut self, progress: &Progress) -> anyhow::Result<u64> {
        const DELETE: &str = "DELETE FROM outbox WHERE seq BETWEEN $1 AND $2 AND event_id = ANY($3)";
        let query = sqlx::query(DELETE)
            .bind(progress.first_seq)
            .bind(progress.last_seq)
            .bind(&progress.event_ids)
            .execute(&mut self.connection);
        Ok(answer(query).await?.rows_affected())
    }

    /// Moves an event that Kafka refused for good to `outbox_dead`.
    pub async fn move_to_dead(&mut self, seq: i64, reason: &str) -> anyhow::Result<Option<Uuid>> {
        const MOVE: &str = "WITH moved AS (DELETE FROM outbox WHERE seq = $1 RETURNING *) \
            INSERT INTO outbox_dead (event_id, order_id, user_id, payload, traceparent, created_at, reason) \
            SELECT event_id, order_id, user_id, payload, traceparent, created_at, $2 FROM moved \
            ON CONFLICT (event_id) DO NOTHING RETURNING event_id";
        answer(sqlx::query_scalar(MOVE).bind(seq).bind(reason).fetch_optional(&mut self.connection)).await
    }

    /// Runs blocking work on a thread of its own, and pings the session while it runs. `Err`: the session was lost. The
    /// work has ended even then, so that it does not run beside a restarted relay.
    pub async fn run_with_keepalive<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        self.run_and_query(work, async |_| Ok(())).await.map(|(done, ())| done)
    }

    /// Runs blocking work like [`Self::run_with_keepalive`], and queries the shard at the same time.
    pub async fn run_and_query<T: Send + 'static, A>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
        query: impl AsyncFnOnce(&mut Self) -> anyhow::Result<A>,
    ) -> anyhow::Result<(T, A)> {
        let mut work = tokio::task::spawn_blocking(work);
        let answered = query(self).await;
        loop {
            match timeout(KEEPALIVE, &mut work).await {
                Ok(done) => return Ok((done.context("the blocking work panicked")?, answered?)),
                Err(_) => {
                    if let Err(error) = answer(self.connection.ping()).await {
                        work.await.context("the blocking work panicked")?;
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// A listener for the events of other processes' writers. A lost notification or connection only costs the time until
/// the next poll.
pub struct OutboxListener {
    /// A pool of one connection: sqlx listens only on a pool's connection.
    pool: PgPool,
    listener: Option<PgListener>,
}

impl OutboxListener {
    pub fn new(options: &PgConnectOptions) -> Self {
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(postgres::CONNECT_TIMEOUT);
        Self { pool: pool.connect_lazy_with(options.clone()), listener: None }
    }

    /// Waits for the next notification. Cancel-safe.
    pub async fn next(&mut self) {
        loop {
            let heard = match &mut self.listener {
                Some(listener) => listener.try_recv().await.ok().flatten().is_some(),
                None => match self.listen().await {
                    Ok(listener) => {
                        self.listener = Some(listener);
                        continue;
                    }
                    Err(_) => std::future::pending().await,
                },
            };
            if heard {
                return;
            }
            self.listener = None;
        }
    }

    /// Drops notifications, and never ends. It does not connect, since it is cancelled too soon for that.
    pub async fn drain(&mut self) {
        while let Some(listener) = &mut self.listener {
            if !listener.try_recv().await.is_ok_and(|heard| heard.is_some()) {
                self.listener = None;
            }
        }
        std::future::pending::<()>().await;
    }

    async fn listen(&self) -> Result<PgListener, sqlx::Error> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(listener)
    }
}

async fn answer<T>(query: impl Future<Output = Result<T, sqlx::Error>>) -> anyhow::Result<T> {
    match timeout(ANSWER_TIMEOUT, query).await {
        Ok(answer) => Ok(answer?),
        Err(_) => bail!("the shard did not answer within {} s", ANSWER_TIMEOUT.as_secs()),
    }
}
