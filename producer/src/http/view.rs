//! An order as the API shows it.

use orderflow_core::{Money, Order, OrderId, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

pub const PENDING: &str = "pending";
pub const STORED: &str = "stored";
pub const MISSING: &str = "missing";

#[derive(Debug, Serialize, ToSchema)]
pub struct OrderView {
    /// UUIDv7
    #[schema(value_type = uuid::Uuid)]
    id: OrderId,
    #[schema(example = "alice", min_length = 1, max_length = 100)]
    user_id: String,
    #[schema(example = "Mechanical Keyboard", min_length = 1, max_length = 255)]
    product_name: String,
    #[schema(example = 2, minimum = 1)]
    quantity: i32,
    /// Of one piece, with at most two decimals.
    #[schema(value_type = f64, example = 149.99)]
    price: Money,
    #[schema(example = "created")]
    status: String,
    #[schema(example = "receipts/alice/01890a5d-ac96-774b-bcce-b302099a8057.txt")]
    receipt_s3_key: String,
    /// `pending` until the receipt is written, then `stored`
    #[schema(example = "pending")]
    receipt_status: &'static str,
    /// RFC 3339, UTC, with microseconds
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl OrderView {
    pub fn new(order: Order, receipt_status: &'static str) -> Self {
        Self {
            id: order.id,
            user_id: order.user_id.to_string(),
            product_name: order.product_name.to_string(),
            quantity: order.quantity.get(),
            price: order.price,
            status: order.status.into_owned(),
            receipt_s3_key: order.receipt_s3_key,
            receipt_status,
            created_at: order.created_at,
            updated_at: order.updated_at,
        }
    }
}

pub fn receipt_status(pending: bool) -> &'static str {
    if pending { PENDING } else { STORED }
}
