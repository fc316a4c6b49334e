//! The spans of a batch of orders on their way into the shard: the wait of each in the queue, and the statement that
//! stores them all.

use std::time::SystemTime;

use orderflow_service::traces::{self, Builder, KeyValue, Span, SpanKind};
use sqlx::postgres::PgConnectOptions;

use super::queue::Submission;

/// Starts the span of the statement, which links to each recorded order, and makes the spans of their waits, which link
/// to it. `None` if no order of the batch is recorded.
pub fn of_batch(batch: &[Submission], shard: &str, database: &PgConnectOptions) -> Option<Span> {
    if !traces::is_on() {
        return None;
    }
    let recorded = |submission: &Submission| {
        Some((traces::recorded(Some(&submission.traceparent))?, submission.order.id, submission.queued.elapsed()))
    };
    let orders: Vec<_> = batch.iter().filter_map(recorded).collect();
    let contexts: Vec<_> = orders.iter().map(|(order, ..)| order.clone()).collect();
    if contexts.is_empty() {
        return None;
    }
    let mut statement = Builder::batch("INSERT orders".to_owned(), SpanKind::Client, &contexts).start()?;
    statement.set([
        KeyValue::new("db.system.name", "postgresql"),
        KeyValue::new("db.operation.name", "INSERT"),
        KeyValue::new("db.collection.name", "orders"),
        KeyValue::new("db.query.summary", "INSERT orders"),
        KeyValue::new("server.address", database.get_host().to_owned()),
        KeyValue::new("server.port", i64::from(database.get_port())),
        KeyValue::new("orderflow.shard", shard.to_owned()),
    ]);
    statement.set(database.get_database().map(|name| KeyValue::new("db.namespace", name.to_owned())));
    // The conventions want no size for a single order.
    if batch.len() > 1 {
        statement.set([KeyValue::new("db.operation.batch.size", batch.len() as i64)]);
    }
    let now = SystemTime::now();
    for (order, id, waited) in orders {
        let wait = Builder::step("wait in queue".to_owned(), SpanKind::Internal, order);
        let wait = wait.started(now.checked_sub(waited).unwrap_or(now)).linked(statement.context().clone());
        if let Some(mut wait) = wait.start() {
            wait.set([
                KeyValue::new("orderflow.order.id", id.to_string()),
                KeyValue::new("orderflow.shard", shard.to_owned()),
            ]);
        }
    }
    Some(statement)
}
