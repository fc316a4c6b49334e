//! The final state: every row, object and record, read with clients of the proof's own.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use anyhow::{Context, Result, ensure};
use md5::{Digest, Md5};
use orderflow_core::{MapEpoch, Notification, OrderCreated, ShardMaps};
use orderflow_testbed::{Isolation, Record, Stack, postgres, read_topic};
use sqlx::{Row as _, postgres::PgRow};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::history::Time;

/// The pause between two checks of what is left to do.
const INTERVAL: Duration = Duration::from_millis(200);

/// The places to read the results from, without any proxy between.
#[derive(Debug, Clone)]
pub struct Sites {
    /// The DSN of each shard.
    pub dsns: Vec<String>,
    pub bootstrap: String,
    /// The topic of events; the others are named after it.
    pub topic: String,
    pub s3: aws_sdk_s3::Client,
    pub bucket: String,
}

#[derive(Debug, Default)]
pub struct Observation {
    /// The shard maps of all epochs.
    pub maps: ShardMaps,
    pub rows: Vec<Row>,
    /// Receipts by key.
    pub receipts: BTreeMap<String, Receipt>,
    /// Events by partition and offset.
    pub events: Vec<Found<OrderCreated>>,
    pub notifications: Vec<Found<Notification>>,
    /// Orders whose events Kafka refused.
    pub dead: Vec<Uuid>,
    pub dead_letters: Vec<Record>,
    /// Records that could not be parsed, with the reason.
    pub unreadable: Vec<String>,
}

/// An order's row.
#[derive(Debug, Clone)]
pub struct Row {
    /// The number of the shard, from 1.
    pub shard: usize,
    pub id: Uuid,
    pub user_id: String,
    pub product_name: String,
    pub quantity: i32,
    pub cents: i64,
    pub status: String,
    pub receipt_s3_key: String,
    pub created_at: OffsetDateTime,
    /// The epoch of the shard map under which it was placed.
    pub map_epoch: MapEpoch,
}

impl Row {
    fn new(shard: usize, row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            shard,
            id: row.try_get("id")?,
            user_id: row.try_get("user_id")?,
            product_name: row.try_get("product_name")?,
            quantity: row.try_get("quantity")?,
            cents: row.try_get("cents")?,
            status: row.try_get("status")?,
            receipt_s3_key: row.try_get("receipt_s3_key")?,
            created_at: row.try_get("created_at")?,
            map_epoch: row.try_get("map_epoch")?,
        })
    }
}

#[derive(Debug, Clone)]
pub struct Receipt {
    /// The MD5 of its text, in hexadecimal digits.
    pub tag: String,
    pub stored: Time,
}

/// The work that is left.
#[derive(Debug, Default, PartialEq, Eq)]
struct Work {
    events: i64,
    receipts: i64,
    notifications: i64,
}

/// Numbers that change as long as any work is done.
type Done = Vec<i64>;

/// The content of a record, and its place.
#[derive(Debug, Clone)]
pub struct Found<T> {
    pub partition: i32,
    pub offset: i64,
    pub value: T,
}

impl Sites {
    /// Returns the places of a test's own stack.
    pub fn new(stack: &Stack) -> Self {
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

    /// Waits until no order is in flight. What has not arrived by then is lost.
    ///
    /// # Errors
    /// Fails if nothing changes for as long as `patience` while work is left.
    pub async fn settled(&self, patience: Duration) -> Result<()> {
        let (mut before, mut changed) = (Done::default(), Instant::now());
        loop {
            let seen = match timeout(patience, self.progress()).await {
                Ok(Ok((left, _))) if left == Work::default() => return Ok(()),
                Ok(Ok((left, done))) => {
                    if done != before {
                        (before, changed) = (done, Instant::now());
                    }
                    format!("{left:?}")
                }
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => "no response".to_owned(),
            };
            ensure!(changed.elapsed() < patience, "nothing changed for {patience:?}, and work is left: {seen}");
            sleep(INTERVAL).await;
        }
    }

    /// Reads the whole state.
    pub async fn observe(&self) -> Result<Observation> {
        let mut seen = Observation::default();
        for (index, dsn) in self.dsns.iter().enumerate() {
            const ROWS: &str = "SELECT id, user_id, product_name, quantity, (price * 100)::bigint AS cents, status, \
                                receipt_s3_key, created_at, map_epoch FROM orders";
            let mut connection = postgres::connect(dsn).await?;
            let rows = sqlx::query(ROWS).fetch_all(&mut connection).await.context("read the orders")?;
            for row in &rows {
                seen.rows.push(Row::new(index + 1, row)?);
            }
            const MAPS: &str = "SELECT epoch, shards FROM orderflow_map";
            let maps: Vec<(MapEpoch, String)> = sqlx::query_as(MAPS).fetch_all(&mut connection).await?;
            for (epoch, text) in maps {
                seen.maps.insert(epoch, text.parse()?);
            }
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

    /// Lists the receipts. The tag of an object that was uploaded in one piece is its MD5.
    async fn receipts(&self) -> Result<BTreeMap<String, Receipt>> {
        let mut pages = self.s3.list_objects_v2().bucket(&self.bucket).into_paginator().send();
        let mut receipts = BTreeMap::new();
        while let Some(page) = pages.next().await {
            for object in page?.contents() {
                let key = object.key().context("an object without a key")?.to_owned();
                let tag = object.e_tag().unwrap_or_default().trim_matches('"').to_owned();
                let stored = object.last_modified().and_then(|at| at.to_millis().ok()).unwrap_or_default() * 1000;
                receipts.insert(key, Receipt { tag, stored });
            }
        }
        Ok(receipts)
    }

    /// Returns the work that is left, and a measure of what was done.
    async fn progress(&self) -> Result<(Work, Done)> {
        let (mut left, mut done) = (Work::default(), Done::default());
        for dsn in &self.dsns {
            const COUNT: &str = "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM receipt_jobs)";
            let mut connection = postgres::connect(dsn).await?;
            let (outbox, jobs): (i64, i64) = sqlx::query_as(COUNT).fetch_one(&mut connection).await?;
            left.events += outbox;
            left.receipts += jobs;
        }
        let count = async |topic: &str| {
            anyhow::Ok(read_topic(&self.bootstrap, topic, Isolation::ReadCommitted).await?.len() as i64)
        };
        let (events, notified) = (count(&self.topic).await?, count(&self.notifications()).await?);
        left.notifications = (events - notified).max(0);
        done.extend([-left.events, -left.receipts, events, notified]);
        Ok((left, done))
    }
}

impl Receipt {
    /// Returns whether the receipt has this text.
    pub fn has_text(&self, text: &str) -> bool {
        self.tag == tag_of(text)
    }
}

/// Returns the tag of an object with this text.
pub fn tag_of(text: &str) -> String {
    Md5::digest(text).iter().fold(String::new(), |mut tag, byte| {
        write!(tag, "{byte:02x}").expect("a String takes any text");
        tag
    })
}
