//! The statement that stores a batch, and the statement that reads which order won an idempotency key.

use std::collections::{BTreeSet, HashMap, HashSet};

use orderflow_core::{OrderId, RangeId};
use orderflow_service::postgres::{Refusal, is_stale_plan};
use sqlx::{Connection, FromRow, PgConnection, Row};
use time::OffsetDateTime;

use super::{PlaceError, Placed, order_row::order_columns, queue::Submission};
use crate::shard::StoredOrder;

const INSERT_BATCH: &str = include_str!("insert_batch.sql");

/// Reads the orders of known keys. The snapshot of the insert cannot see a key that another transaction won in the
/// meantime; this statement's later snapshot can.
const SELECT_WINNERS: &str = concat!(
    "SELECT ",
    order_columns!(),
    ", input.position, idempotency_keys.fingerprint FROM unnest($1::int[], $2::text[], $3::text[]) AS input(position, user_id, key) \
      JOIN idempotency_keys ON idempotency_keys.user_id = input.user_id AND idempotency_keys.key = input.key \
      JOIN orders ON orders.id = idempotency_keys.order_id"
);

/// The outcome of each submission, in the order of the batch. `None`: its key was purged before it could be read, so
/// the submission must be sent again.
pub type Outcomes = Vec<Option<Result<Placed, PlaceError>>>;

/// The error of a batch without outcomes.
#[derive(Debug)]
pub struct StoreError {
    /// The meaning of the statement's error. `None`: the outcome is unknown, and the batch may have been stored.
    pub refusal: Option<Refusal>,
    pub error: sqlx::Error,
}

/// The result of the statement.
enum Inserted {
    Ids(HashSet<OrderId>),
    /// The database may not store all ranges of the batch, and has stored nothing.
    NotOwned,
}

/// Sorts a batch as [`store`] requires.
pub fn sort(batch: &mut [Submission]) {
    let key = |submission: &Submission| submission.key.as_ref().map(|key| key.as_str().to_owned());
    batch.sort_by_cached_key(|submission| (submission.order.user_id.clone(), key(submission)));
}

/// Stores a sorted batch in one transaction, and in another reads the orders that its known keys stand for.
///
/// `sent_before`: an earlier try may have stored some of it. `Ok(None)`: the database may not store all ranges of the
/// batch, and has stored nothing.
pub async fn store(
    connection: &mut PgConnection,
    batch: &[&Submission],
    sent_before: bool,
) -> Result<Option<Outcomes>, StoreError> {
    let refused = |error| StoreError {
        refusal: Refusal::from_error(&error).filter(|refusal| *refusal != Refusal::Connection),
        error,
    };
    // The first transaction has committed by now: an error of the second says nothing about the stored orders.
    let unknown = |error| StoreError { refusal: None, error };
    let stored = match insert(connection, batch).await {
        Err(error) if is_stale_plan(&error) => {
            connection.clear_cached_statements().await.map_err(unknown)?;
            insert(connection, batch).await.map_err(refused)?
        }
        stored => stored.map_err(refused)?,
    };
    let Inserted::Ids(stored) = stored else { return Ok(None) };
    let earlier = stored_earlier(connection, batch, &stored, sent_before).await.map_err(unknown)?;
    let mut winners = winners(connection, batch, &stored).await.map_err(unknown)?;
    let outcome = |(position, submission): (usize, &&Submission)| {
        let order = &submission.order;
        if stored.contains(&order.id) || earlier.contains(&order.id) {
            return Some(Ok(Placed::Created(order.clone(), submission.route.epoch)));
        }
        if submission.key.is_none() {
            return Some(Err(PlaceError::Refused(
                "its row was not inserted, and no error says why: a trigger?".to_owned(),
            )));
        }
        let (fingerprint, winner) = winners.remove(&position)?;
        Some(if winner.order.id == order.id {
            Ok(Placed::Created(winner.order, winner.map_epoch))
        } else if fingerprint == submission.fingerprint.as_bytes() {
            Ok(Placed::Replayed(winner.order, winner.map_epoch))
        } else {
            Err(PlaceError::KeyReused)
        })
    };
    Ok(Some(batch.iter().enumerate().map(outcome).collect()))
}

/// Returns the orders without a key that an earlier try of this batch has stored.
async fn stored_earlier(
    connection: &mut PgConnection,
    batch: &[&Submission],
    stored: &HashSet<OrderId>,
    sent_before: bool,
) -> Result<HashSet<OrderId>, sqlx::Error> {
    let is_left = |submission: &&&Submission| submission.key.is_none() && !stored.contains(&submission.order.id);
    let left: Vec<OrderId> = batch.iter().filter(is_left).map(|submission| submission.order.id).collect();
    if !sent_before || left.is_empty() {
        return Ok(HashSet::new());
    }
    let found = sqlx::query_scalar("SELECT id FROM orders WHERE id = ANY($1)").bind(left).fetch_all(connection).await?;
    Ok(found.into_iter().collect())
}

async fn insert(connection: &mut PgConnection, batch: &[&Submission]) -> Result<Inserted, sqlx::Error> {
    macro_rules! column {
        ($of:expr) => {
            batch.iter().map($of).collect::<Vec<_>>()
        };
    }
    let ranges: BTreeSet<RangeId> = batch.iter().map(|submission| submission.route.range).collect();
    let ids: Vec<Option<OrderId>> = sqlx::query_scalar(INSERT_BATCH)
        .bind(column!(|submission| submission.order.id))
        .bind(column!(|submission| submission.order.user_id.as_str()))
        .bind(column!(|submission| submission.order.product_name.as_str()))
        .bind(column!(|submission| submission.order.quantity.get()))
        .bind(column!(|submission| submission.order.price.cents()))
        .bind(column!(|submission| submission.order.receipt_s3_key.as_str()))
        .bind(column!(|submission| OffsetDateTime::from(submission.order.created_at)))
        .bind(column!(|submission| submission.key.as_ref().map(orderflow_core::IdempotencyKey::as_str)))
        .bind(column!(|submission| submission.key.is_some().then(|| submission.fingerprint.as_bytes())))
        .bind(column!(|submission| submission.payload.as_slice()))
        .bind(column!(|submission| submission.traceparent.as_str()))
        .bind(column!(|submission| submission.route.epoch))
        .bind(ranges.into_iter().collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    // One NULL stands for a closed gate.
    let ids: Option<HashSet<OrderId>> = ids.into_iter().collect();
    Ok(ids.map_or(Inserted::NotOwned, Inserted::Ids))
}

/// Returns, by position in the batch, the fingerprint and the order that a key stands for.
async fn winners(
    connection: &mut PgConnection,
    batch: &[&Submission],
    stored: &HashSet<OrderId>,
) -> Result<HashMap<usize, (Vec<u8>, StoredOrder)>, sqlx::Error> {
    let (mut positions, mut users, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for (position, submission) in batch.iter().enumerate() {
        if let Some(key) = &submission.key
            && !stored.contains(&submission.order.id)
        {
            positions.push(position as i32);
            users.push(submission.order.user_id.as_str());
            keys.push(key.as_str());
        }
    }
    if positions.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(SELECT_WINNERS).bind(positions).bind(users).bind(keys).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let position: i32 = row.try_get("position")?;
            let fingerprint: Vec<u8> = row.try_get("fingerprint")?;
            Ok((position as usize, (fingerprint, StoredOrder::from_row(row)?)))
        })
        .collect()
}
