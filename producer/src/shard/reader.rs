//! Reading from one shard: orders by id, orders newest first, and the figures of its contents and its backlog.

use std::{collections::HashSet, pin::Pin, sync::atomic::Ordering, time::Duration};

use orderflow_core::{OrderId, RangeId, Timestamp, UserId};
use sqlx::{FromRow, PgConnection, Row, postgres::PgRow};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout_at};

use super::{
    Shard,
    maps::Maps,
    order_row::{StoredOrder, order_columns},
};

/// Longest wait for a shard's answer to a query, including the wait for a connection.
pub const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// A place in the list of orders, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub created_at: Timestamp,
    pub id: OrderId,
}

/// The error of a shard that gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", self.without_reason())]
pub struct ReadError {
    pub shard: String,
    pub reason: String,
    /// True if the shard does not answer or refuses every query. False if it answered this query with an error.
    pub is_down: bool,
    /// True if the query was not sent, because too many others waited for the shard.
    pub is_crowded: bool,
}

impl ReadError {
    /// Describes the error without the server's own words.
    pub fn without_reason(&self) -> String {
        format!("{} {}", self.shard, if self.is_down { "is down" } else { "could not answer" })
    }
}

/// The figures of a shard and its backlog. Counts stop at [`MOST_COUNTED`]; ages are in seconds, by the shard's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Number of orders; [`MOST_COUNTED`] + 1 stands for any larger number.
    pub orders_counted: i64,
    pub orders_estimate: i64,
    pub outbox: i64,
    pub outbox_age: Option<f64>,
    /// The time of acceptance of the order whose event is first in the outbox, in Unix microseconds.
    pub outbox_oldest: Option<i64>,
    /// The time at which the oldest running transaction of a producer began, in Unix microseconds.
    pub oldest_write: Option<i64>,
    pub receipt_jobs: i64,
    pub receipt_jobs_age: Option<f64>,
    pub refused_events: i64,
}

orderflow_service::from_row!(Figures {
    orders_counted,
    orders_estimate,
    outbox,
    outbox_age,
    outbox_oldest,
    oldest_write,
    receipt_jobs,
    receipt_jobs_age,
    refused_events
});

/// The work that a shard still has to do for one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Tries so far to write its receipt; `None` if it is written.
    pub receipt_attempts: Option<i32>,
    pub in_outbox: bool,
    /// The time at which Kafka refused its event for good.
    pub refused_since: Option<OffsetDateTime>,
    /// The trace context of its request; `None` if it is in none of the tables any more.
    pub traceparent: Option<String>,
}

orderflow_service::from_row!(Queued { receipt_attempts, in_outbox, refused_since, traceparent });

/// The result of a search for the events of some orders in the shard's queue tables.
#[derive(Clone, Debug)]
pub struct QueuedEvents {
    pub waiting: HashSet<OrderId>,
    pub refused: HashSet<OrderId>,
    /// The time of acceptance of the order whose event is first in the outbox.
    pub oldest: Option<Timestamp>,
    /// True if the whole outbox was searched, not only the newest [`MOST_COUNTED`] events.
    pub is_complete: bool,
}

/// Largest number that is counted; a larger one would cost more than it is worth.
pub const MOST_COUNTED: i64 = 10_000;

impl Shard {
    pub async fn order(&self, id: OrderId) -> Result<Option<StoredOrder>, ReadError> {
        const SELECT: &str = concat!("SELECT ", order_columns!(), " FROM orders WHERE id = $1");
        self.read(move |connection| Box::pin(sqlx::query_as(SELECT).bind(id).fetch_optional(connection))).await
    }

    /// Returns at most `limit` orders older than `before`, newest first.
    pub async fn orders(&self, before: Option<Position>, limit: i64) -> Result<Vec<StoredOrder>, ReadError> {
        // A row comparison is one range of the index; no position at all is a position after every order.
        const ALL: &str = concat!(
            "SELECT ",
            order_columns!(),
            " FROM orders WHERE (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT $3"
        );
        let before = before.unwrap_or(Position::NEWEST);
        self.read(move |connection| {
            let query = sqlx::query_as(ALL).bind(OffsetDateTime::from(before.created_at)).bind(before.id).bind(limit);
            Box::pin(query.fetch_all(connection))
        })
        .await
    }

    /// Returns at most `limit` orders of a user older than `before`, newest first, or `None` if this database does not
    /// store the user's range any more. Both are read in one snapshot, so that an order which was answered before the
    /// read began is seen.
    pub async fn orders_of(
        &self,
        user: &UserId,
        range: RangeId,
        before: Option<Position>,
        limit: i64,
    ) -> Result<Option<Vec<StoredOrder>>, ReadError> {
        const OF_USER: &str = concat!(
            "SELECT ",
            order_columns!(),
            ", gate.is_here FROM (SELECT owned || fenced @> ARRAY[$5::int] AS is_here FROM orderflow_gate WHERE slot = 0) AS gate \
             LEFT JOIN LATERAL (SELECT * FROM orders WHERE gate.is_here AND user_id = $4 AND (created_at, id) < ($1, $2) \
               ORDER BY created_at DESC, id DESC LIMIT $3) AS orders ON true"
        );
        let (user, before) = (user.as_str().to_owned(), before.unwrap_or(Position::NEWEST));
        self.read(move |connection| {
            Box::pin(async move {
                let query = sqlx::query(OF_USER)
                    .bind(OffsetDateTime::from(before.created_at))
                    .bind(before.id)
                    .bind(limit)
                    .bind(user)
                    .bind(range);
                let rows = query.fetch_all(connection).await?;
                let is_here = rows.first().is_some_and(|row| row.try_get("is_here").unwrap_or(false));
                // A user without orders is one row without an id.
                let has_order = |row: &&PgRow| row.try_get::<Option<OrderId>, _>(0).is_ok_and(|id| id.is_some());
                let orders = rows.iter().filter(has_order).map(StoredOrder::from_row);
                is_here.then(|| orders.collect()).transpose()
            })
        })
        .await
    }

    /// Reads the shard maps from this shard. An error changes nothing.
    pub async fn read_maps(&self, maps: &Maps) {
        let known = maps.clone();
        let read = self.read(move |connection| Box::pin(async move { known.read_from(connection).await }));
        if let Err(error) = read.await {
            tracing::debug!(shard = self.name(), reason = error.reason, "the shard maps cannot be read");
        }
    }

    pub async fn queued(&self, id: OrderId) -> Result<Queued, ReadError> {
        // The outbox has no index by event. It is nearly empty, or long after an outage, when the deadline bounds the
        // query.
        const QUEUED: &str = "SELECT (SELECT attempts FROM receipt_jobs WHERE order_id = $1) AS receipt_attempts, \
                              EXISTS (SELECT FROM outbox WHERE event_id = $1) AS in_outbox, \
                              (SELECT died_at FROM outbox_dead WHERE event_id = $1) AS refused_since, \
                              coalesce((SELECT traceparent FROM receipt_jobs WHERE order_id = $1), \
                                       (SELECT traceparent FROM outbox WHERE event_id = $1 LIMIT 1), \
                                       (SELECT traceparent FROM outbox_dead WHERE event_id = $1)) AS traceparent";
        self.read(move |connection| Box::pin(sqlx::query_as(QUEUED).bind(id).fetch_one(connection))).await
    }

    /// Searches the queue tables for the events of these orders, which were read before. If the outbox is long after an
    /// outage, only its newest events are searched.
    pub async fn queued_events(&self, ids: Vec<OrderId>) -> Result<QueuedEvents, ReadError> {
        const QUEUED_EVENTS: &str = include_str!("queued_events.sql");
        type Row = (Vec<OrderId>, Vec<OrderId>, Option<i64>, i64);
        let found = self.read(move |connection| {
            Box::pin(sqlx::query_as(QUEUED_EVENTS).bind(ids).bind(MOST_COUNTED).fetch_one(connection))
        });
        let (waiting, refused, oldest, counted): Row = found.await?;
        Ok(QueuedEvents {
            waiting: waiting.into_iter().collect(),
            refused: refused.into_iter().collect(),
            oldest: oldest.and_then(Timestamp::from_unix_microseconds),
            is_complete: counted < MOST_COUNTED,
        })
    }

    /// Returns the longest time from an order's acceptance to its commit, measured by any two clocks.
    pub fn longest_wait(&self) -> Duration {
        /// Largest difference between the clocks of two synchronized machines.
        const SKEW: Duration = Duration::from_secs(1);
        // An order waits in the queue, and then in a batch until the last order of that batch has given up.
        2 * self.inner.order_timeout + SKEW
    }

    pub async fn figures(&self) -> Result<Figures, ReadError> {
        const FIGURES: &str = include_str!("figures.sql");
        // Read before the figures, so that a write that commits between the two statements is in one of them at least.
        const OLDEST_WRITE: &str = "SELECT (extract(epoch FROM min(xact_start)) * 1000000)::bigint FROM pg_stat_activity \
            WHERE datname = current_database() AND application_name = 'orderflow-producer' AND pid <> pg_backend_pid()";
        self.read(|connection| {
            Box::pin(async move {
                let oldest_write: Option<i64> = sqlx::query_scalar(OLDEST_WRITE).fetch_one(&mut *connection).await?;
                sqlx::query_as(FIGURES).bind(MOST_COUNTED).bind(oldest_write).fetch_one(connection).await
            })
        })
        .await
    }

    /// Returns the reason while the shard takes no orders.
    pub fn down_reason(&self) -> Option<String> {
        self.inner.health.dependency.down_reason()
    }

    /// Runs a query in a task of its own, which ends within [`READ_TIMEOUT`] even after its request has ended, and then
    /// gives its connection back: a connection that is abandoned before its answer cannot be used again. Each task has
    /// a place in `readers`, which bounds their number.
    async fn read<T: Send + 'static>(
        &self,
        query: impl for<'connection> FnOnce(&'connection mut PgConnection) -> Running<'connection, T>
        + Clone
        + Send
        + 'static,
    ) -> Result<T, ReadError> {
        let failed = |reason: String, is_down| {
            let shard = self.name().to_owned();
            ReadError { shard, reason, is_down, is_crowded: false }
        };
        if !self.inner.health.reachable.load(Ordering::Relaxed) {
            return Err(failed("it does not answer".to_owned(), true));
        }
        let deadline = Instant::now() + READ_TIMEOUT;
        let place = timeout_at(deadline, self.inner.readers.clone().acquire_owned()).await.ok().and_then(Result::ok);
        let Some(place) = place else {
            let crowded = failed("too many queries wait for it".to_owned(), false);
            return Err(ReadError { is_crowded: true, ..crowded });
        };
        let pool = self.pool().clone();
        let task = tokio::spawn(async move {
            let _place = place;
            let left = deadline.saturating_duration_since(Instant::now());
            pool.ask(left, async move |connection: &mut PgConnection| query(connection).await).await
        });
        match task.await {
            Ok(answer) => answer.map_err(|error| failed(error.to_string(), error.is_down())),
            Err(_) => Err(failed("the query panicked".to_owned(), false)),
        }
    }
}

/// A running query.
type Running<'connection, T> = Pin<Box<dyn Future<Output = Result<T, sqlx::Error>> + Send + 'connection>>;

impl Position {
    const NEWEST: Self = Self { created_at: Timestamp::MAX, id: OrderId::max() };
}
