//! Reading orders of one shard: by id, newest first, and how much work waits.

use std::{sync::atomic::Ordering, time::Duration};

use orderflow_core::{OrderId, Timestamp, UserId};
use orderflow_service::postgres;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{
    Shard,
    order_row::{StoredOrder, order_columns},
};

/// Longest wait for a shard's answer to a question.
pub const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// A place in the list of orders, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub created_at: Timestamp,
    pub id: OrderId,
}

/// The shard gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("{shard} is down: {reason}")]
pub struct ReadError {
    pub shard: String,
    pub reason: String,
}

/// Work that waits in a shard; counts stop at [`Backlog::MOST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    pub outbox: i64,
    pub receipt_jobs: i64,
}

impl Backlog {
    /// Counting further would cost more than the number is worth.
    pub const MOST: i64 = 10_000;
}

impl Shard {
    pub async fn order(&self, id: OrderId) -> Result<Option<StoredOrder>, ReadError> {
        const SELECT: &str = concat!("SELECT ", order_columns!(), " FROM orders WHERE id = $1");
        self.read(async |connection| sqlx::query_as(SELECT).bind(id).fetch_optional(connection).await).await
    }

    /// At most `limit` orders older than `before`, newest first.
    pub async fn orders(
        &self,
        user: Option<&UserId>,
        before: Option<Position>,
        limit: i64,
    ) -> Result<Vec<StoredOrder>, ReadError> {
        // A row comparison is one range of the index; no position at all is a position after every order.
        const ALL: &str = concat!(
            "SELECT ",
            order_columns!(),
            " FROM orders WHERE (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT $3"
        );
        const OF_USER: &str = concat!(
            "SELECT ",
            order_columns!(),
            " FROM orders WHERE user_id = $4 AND (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT $3"
        );
        let before = before.unwrap_or(Position::NEWEST);
        self.read(async |connection| {
            let query = sqlx::query_as(if user.is_some() { OF_USER } else { ALL })
                .bind(OffsetDateTime::from(before.created_at))
                .bind(before.id)
                .bind(limit);
            let query = if let Some(user) = user { query.bind(user.as_str()) } else { query };
            query.fetch_all(connection).await
        })
        .await
    }

    pub async fn backlog(&self) -> Result<Backlog, ReadError> {
        const COUNT: &str = "SELECT (SELECT count(*) FROM (SELECT FROM outbox LIMIT $1) AS waiting), \
                             (SELECT count(*) FROM (SELECT FROM receipt_jobs LIMIT $1) AS waiting)";
        let (outbox, receipt_jobs) =
            self.read(async |connection| sqlx::query_as(COUNT).bind(Backlog::MOST).fetch_one(connection).await).await?;
        Ok(Backlog { outbox, receipt_jobs })
    }

    async fn read<T>(
        &self,
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, ReadError> {
        let down = |reason: String| ReadError { shard: self.name().to_owned(), reason };
        if !self.inner.health.reachable.load(Ordering::Relaxed) {
            return Err(down("it does not answer".to_owned()));
        }
        postgres::ask(self.pool(), READ_TIMEOUT, question).await.map_err(|error| down(error.to_string()))
    }
}

impl Position {
    const NEWEST: Self = Self { created_at: Timestamp::MAX, id: OrderId::max() };
}
