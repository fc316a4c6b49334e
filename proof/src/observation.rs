//! What is there in the end: every row, object and record, read with clients of the proof's own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use orderflow_core::{Notification, OrderCreated};
use orderflow_testbed::{Isolation, Record, Stack, eventually, postgres, read_topic};
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::history::Time;

/// GETs in flight.
const IN_FLIGHT: usize = 64;

/// Where to look, without any proxy between.
#[derive(Debug, Clone)]
pub struct Sites {
    /// Of each shard.
    pub dsns: Vec<String>,
    pub bootstrap: String,
    /// Of the events; the others are named after it.
    pub topic: String,
    pub s3: aws_sdk_s3::Client,
    pub bucket: String,
}

#[derive(Debug, Default)]
pub struct Observation {
    pub rows: Vec<Row>,
    /// By key.
    pub receipts: BTreeMap<String, Receipt>,
    /// In the order of their partitions and offsets.
    pub events: Vec<Found<OrderCreated>>,
    pub notifications: Vec<Found<Notification>>,
    /// Of events that Kafka refused.
    pub dead: Vec<Uuid>,
    pub dead_letters: Vec<Record>,
    /// Records that could not even be read, with the reason.
    pub unreadable: Vec<String>,
}

/// An order's row.
#[derive(Debug, Clone, FromRow)]
pub struct Row {
    /// From 1.
    #[sqlx(skip)]
    pub shard: usize,
    pub id: Uuid,
    pub user_id: String,
    pub product_name: String,
    pub quantity: i32,
    pub cents: i64,
    pub status: String,
    pub receipt_s3_key: String,
    pub created_at: OffsetDateTime,
}

#[derive(Debug, Clone)]
pub struct Receipt {
    pub text: String,
    pub stored: Time,
}

/// What a record holds, and where it is.
#[derive(Debug, Clone)]
pub struct Found<T> {
    pub partition: i32,
    pub offset: i64,
    pub value: T,
}

impl Sites {
    /// Of a test's own.
    pub fn of(stack: &Stack) -> Self {
        Self {
            dsns: vec![stack.dsn(1), stack.dsn(2)],
            bootstrap: stack.kafka().bootstrap(),
            topic: stack.topic(),
            s3: stack.s3(),
            bucket: stack.bucket(),
        }
    }

    pub fn notifications(&self) -> String {
        format!("{}.notifications", self.topic)
    }

    /// Waits until nothing is on its way any more. What is lost by then is lost.
    pub async fn settled(&self, patience: Duration) -> Result<()> {
        eventually("all queues to be empty and all events to be notified", patience, async || {
            for (shard, dsn) in self.dsns.iter().enumerate() {
                const COUNT: &str = "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM receipt_jobs)";
                let mut connection = postgres::connect(dsn).await?;
                let (outbox, jobs): (i64, i64) = sqlx::query_as(COUNT).fetch_one(&mut connection).await?;
                ensure!((outbox, jobs) == (0, 0), "shard{}: {outbox} events and {jobs} receipts wait", shard + 1);
            }
            let count = async |topic: &str| {
                anyhow::Ok(read_topic(&self.bootstrap, topic, Isolation::ReadCommitted).await?.len())
            };
            let (events, notified) = (count(&self.topic).await?, count(&self.notifications()).await?);
            ensure!(notified >= events, "{notified} notifications of {events} events");
            Ok(())
        })
        .await
    }

    /// Looks at everything.
    pub async fn observe(&self) -> Result<Observation> {
        let mut seen = Observation::default();
        for (index, dsn) in self.dsns.iter().enumerate() {
            const ROWS: &str = "SELECT id, user_id, product_name, quantity, (price * 100)::bigint AS cents, status, \
                                receipt_s3_key, created_at FROM orders";
            let mut connection = postgres::connect(dsn).await?;
            let rows: Vec<Row> = sqlx::query_as(ROWS).fetch_all(&mut connection).await.context("read the orders")?;
            seen.rows.extend(rows.into_iter().map(|row| Row { shard: index + 1, ..row }));
            let dead: Vec<Uuid> = sqlx::query_scalar("SELECT event_id FROM outbox_dead")
                .fetch_all(&mut connection)
                .await
                .context("read outbox_dead")?;
            seen.dead.extend(dead);
        }
        seen.receipts = self.receipts().await.context("read the receipts")?;
        let read = async |topic: String| read_topic(&self.bootstrap, &topic, Isolation::ReadCommitted).await;
        for record in read(self.topic.clone()).await? {
            match OrderCreated::decode(record.value.as_deref(), None) {
                Ok(value) => seen.events.push(Found { partition: record.partition, offset: record.offset, value }),
                Err(error) => seen.unreadable.push(format!("event {}/{}: {error}", record.partition, record.offset)),
            }
        }
        for record in read(self.notifications()).await? {
            match record.json() {
                Ok(value) => {
                    seen.notifications.push(Found { partition: record.partition, offset: record.offset, value });
                }
                Err(error) => {
                    seen.unreadable.push(format!("notification {}/{}: {error}", record.partition, record.offset));
                }
            }
        }
        seen.dead_letters = read(format!("{}.dlq", self.topic)).await?;
        Ok(seen)
    }

    async fn receipts(&self) -> Result<BTreeMap<String, Receipt>> {
        let mut pages = self.s3.list_objects_v2().bucket(&self.bucket).into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            keys.extend(page?.contents().iter().filter_map(|object| object.key().map(str::to_owned)));
        }
        stream::iter(keys)
            .map(async |key| {
                let object = self.s3.get_object().bucket(&self.bucket).key(&key).send().await?;
                let stored = object.last_modified().and_then(|at| at.to_millis().ok()).unwrap_or_default() * 1000;
                let bytes = object.body.collect().await?.into_bytes();
                let text = String::from_utf8(bytes.to_vec()).with_context(|| format!("read {key} as text"))?;
                anyhow::Ok((key, Receipt { text, stored }))
            })
            .buffer_unordered(IN_FLIGHT)
            .try_collect()
            .await
    }
}
