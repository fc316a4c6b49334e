//! An order as a row of its shard.

use std::borrow::Cow;

use orderflow_core::{MapEpoch, Money, Order, ProductName, Quantity, UserId};
use sqlx::{FromRow, Row, postgres::PgRow};
use time::OffsetDateTime;

/// The columns that [`StoredOrder`] reads from `orders`; the price leaves the database as whole cents. It has a
/// subselect: with EXISTS, for a page of orders, the planner would first read all receipt jobs, be it a million.
macro_rules! order_columns {
    () => {
        "orders.id, orders.user_id, orders.product_name, orders.quantity, (orders.price * 100)::bigint AS cents, \
         orders.status, orders.receipt_s3_key, orders.created_at, orders.updated_at, \
         (SELECT true FROM receipt_jobs WHERE receipt_jobs.order_id = orders.id) IS NOT NULL AS receipt_pending, \
         orders.map_epoch"
    };
}
pub(crate) use order_columns;

/// An order, and whether its receipt is still to be written.
#[derive(Clone, Debug)]
pub struct StoredOrder {
    pub order: Order,
    pub receipt_pending: bool,
    /// The epoch of the shard map under which the order was placed.
    pub map_epoch: MapEpoch,
}

/// Reads by position, so these columns come first: by name each would be a search in a hash table, hundreds for a page.
impl FromRow<'_, PgRow> for StoredOrder {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let status: &str = row.try_get(5)?;
        let order = Order {
            id: row.try_get(0)?,
            user_id: UserId::from_stored(row.try_get(1)?),
            product_name: ProductName::from_stored(row.try_get(2)?),
            quantity: Quantity::from_stored(row.try_get(3)?),
            price: Money::from_cents(row.try_get(4)?),
            status: if status == Order::CREATED {
                Cow::Borrowed(Order::CREATED)
            } else {
                Cow::Owned(status.to_owned())
            },
            receipt_s3_key: row.try_get(6)?,
            created_at: row.try_get::<OffsetDateTime, _>(7)?.into(),
            updated_at: row.try_get::<OffsetDateTime, _>(8)?.into(),
        };
        Ok(Self { order, receipt_pending: row.try_get(9)?, map_epoch: row.try_get(10)? })
    }
}
