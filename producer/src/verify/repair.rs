//! Queues the missing receipts and events of a slice again. Relays and receipt workers do the rest, as with any order.
//! Nothing is deleted, and only other repairs are locked out.

use orderflow_core::{OrderCreated, OrderId};
use time::OffsetDateTime;

use super::{
    finding::{Event, Notification, Receipt},
    kafka_findings::KafkaFindings,
    options::Options,
    report::Report,
    slice::{Accepted, Session, Slice},
};
use crate::relay;

/// Orders in one statement.
const BATCH: usize = 1000;

const INSERT_JOBS: &str = "INSERT INTO receipt_jobs (order_id, available_at) \
    SELECT id, now() FROM unnest($1::uuid[]) AS input(id) ON CONFLICT DO NOTHING";

/// Inserts events in the order of acceptance, which the relay keeps.
const INSERT_EVENTS: &str = "INSERT INTO outbox (event_id, order_id, user_id, payload, traceparent, created_at) \
    SELECT id, id, user_id, payload, traceparent, created_at \
    FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::text[], $5::timestamptz[]) WITH ORDINALITY \
      AS input(id, user_id, payload, traceparent, created_at, position) \
    WHERE NOT EXISTS (SELECT FROM outbox WHERE event_id = input.id) \
      AND NOT EXISTS (SELECT FROM outbox_dead WHERE event_id = input.id) \
    ORDER BY position";

pub async fn run(
    shards: &mut [Session],
    slice: &Slice,
    in_kafka: Option<&KafkaFindings>,
    options: &Options,
    report: &mut Report,
) -> anyhow::Result<()> {
    for (index, shard) in shards.iter_mut().enumerate() {
        let select = |wanted: &dyn Fn(&Accepted) -> bool| -> Vec<OrderId> {
            slice.of_shard(index).filter(|(_, order)| wanted(order)).map(|(id, _)| id).collect()
        };
        let receipts = select(&|order| matches!(order.receipt, Some(Receipt::Missing | Receipt::Different)));
        for ids in receipts.chunks(BATCH) {
            let query = sqlx::query(INSERT_JOBS).bind(ids);
            report.requeued.receipts +=
                shard.ask(async |connection| query.execute(connection).await).await?.rows_affected();
        }
        let Some(in_kafka) = in_kafka else { continue };
        let events = select(&|order| match in_kafka.event(order) {
            Event::Missing => true,
            Event::Expired | Event::Deleted => options.renotify,
            Event::Published | Event::Waiting | Event::Refused | Event::Twice => false,
        });
        let unnotified = select(&|order| match in_kafka.notification(order) {
            Notification::Missing => true,
            Notification::Expired | Notification::Deleted => options.renotify,
            Notification::Sent
            | Notification::Waiting
            | Notification::DeadLetter
            | Notification::NoEvent
            | Notification::Twice => false,
        });
        report.requeued.events += queue_events(shard, &events).await?;
        report.requeued.again += queue_events(shard, &unnotified).await?;
        if !(events.is_empty() && unnotified.is_empty()) {
            let notify = sqlx::query("SELECT pg_notify($1, '')").bind(relay::CHANNEL);
            shard.ask(async |connection| notify.execute(connection).await).await?;
        }
    }
    Ok(())
}

/// Inserts the events of these orders into the outbox, made again from their rows. Returns their number.
async fn queue_events(shard: &mut Session, ids: &[OrderId]) -> anyhow::Result<u64> {
    let mut inserted = 0;
    for ids in ids.chunks(BATCH) {
        let events = shard.events(ids).await?;
        let query = sqlx::query(INSERT_EVENTS)
            .bind(events.iter().map(OrderCreated::event_id).collect::<Vec<_>>())
            .bind(events.iter().map(|event| event.user_id.as_str()).collect::<Vec<_>>())
            .bind(events.iter().map(OrderCreated::encode).collect::<Vec<_>>())
            .bind(events.iter().map(OrderCreated::traceparent).collect::<Vec<_>>())
            .bind(events.iter().map(|event| OffsetDateTime::from(event.timestamp)).collect::<Vec<_>>());
        inserted += shard.ask(async |connection| query.execute(connection).await).await?.rows_affected();
    }
    Ok(inserted)
}
