//! An order as the API shows it.

use std::borrow::Cow;

use orderflow_core::{Money, Order, OrderId, ProductName, Quantity, Timestamp, UserId};
use serde::Serialize;
use utoipa::ToSchema;

use super::progress::{NotifiedState, Progress, PublishedState};

pub const PENDING: &str = "pending";
pub const STORED: &str = "stored";
pub const MISSING: &str = "missing";

#[derive(Debug, Serialize, ToSchema)]
pub struct OrderView {
    /// UUIDv7
    #[schema(value_type = uuid::Uuid)]
    id: OrderId,
    #[schema(value_type = String, example = "alice", min_length = 1, max_length = 100)]
    user_id: UserId,
    #[schema(value_type = String, example = "Mechanical Keyboard", min_length = 1, max_length = 255)]
    product_name: ProductName,
    #[schema(value_type = i32, example = 2, minimum = 1)]
    quantity: Quantity,
    /// Unit price, with at most two decimals.
    #[schema(value_type = f64, example = 149.99)]
    price: Money,
    #[schema(value_type = String, example = "created")]
    status: Cow<'static, str>,
    #[schema(example = "receipts/alice/01890a5d-ac96-774b-bcce-b302099a8057.txt")]
    receipt_s3_key: String,
    /// `pending` until the receipt is written, then `stored`
    #[schema(example = "pending")]
    receipt_status: &'static str,
    /// RFC 3339, UTC, with six decimals
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// Event state: `waiting` in the outbox, `published`, `refused` by Kafka for good, or `unknown`. Only with
    /// `progress=true`
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    published: Option<PublishedState>,
    /// Notification state: `waiting`, `notified` (the consumers have passed its event) or `unknown`. Only with
    /// `progress=true`
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    notified: Option<NotifiedState>,
}

impl OrderView {
    pub fn new(order: Order, receipt_status: &'static str) -> Self {
        Self {
            id: order.id,
            user_id: order.user_id,
            product_name: order.product_name,
            quantity: order.quantity,
            price: order.price,
            status: order.status,
            receipt_s3_key: order.receipt_s3_key,
            receipt_status,
            created_at: order.created_at,
            updated_at: order.updated_at,
            published: None,
            notified: None,
        }
    }

    #[must_use]
    pub fn with(self, progress: Option<Progress>) -> Self {
        let (published, notified) = progress.map(|Progress { published, notified }| (published, notified)).unzip();
        Self { published, notified, ..self }
    }
}

pub fn receipt_status(pending: bool) -> &'static str {
    if pending { PENDING } else { STORED }
}
