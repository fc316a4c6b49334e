//! A row of the outbox, as the relay reads it.

use uuid::Uuid;

/// An event that waits for its publication.
#[derive(Debug)]
pub struct OutboxRow {
    pub seq: i64,
    pub event_id: Uuid,
    pub user_id: String,
    pub payload: Vec<u8>,
    pub traceparent: Option<String>,
}

orderflow_service::from_row!(OutboxRow { seq, event_id, user_id, payload, traceparent });
