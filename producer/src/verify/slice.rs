//! A slice of time: its bounds, and the state of its orders in the shards.

use std::{collections::HashMap, future::Future, time::Duration};

use anyhow::{Context, bail, ensure};
use futures_util::TryStreamExt;
use orderflow_core::{MapEpoch, OrderCreated, OrderId, ShardMap, Timestamp, receipt};
use orderflow_service::postgres::{self, Dsn};
use sqlx::{FromRow, PgConnection, Row};
use time::OffsetDateTime;

use super::finding::{Place, Receipt};
use crate::{
    Settings,
    shard::{
        StoredOrder, maps,
        meta::{Expected, MetaError},
        order_columns,
    },
};

/// Orders in a slice, over all shards: about 50 MB. That is far more than the overhead of a slice (its margins in Kafka
/// are 5 minutes on either side), and far less than the memory of a pod.
const SLICE: usize = 100_000;

/// Longest wait for an answer of a shard. During an outage of Kafka the outbox, which each snapshot reads, has millions
/// of rows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Key of the advisory lock that one repair holds (`ordrveri` in ASCII); the relay has another.
const LOCK: i64 = 0x6f72_6472_7665_7269;

/// All orders that were accepted in a span of time, which begins with `from`. The last slice has no end.
pub struct Slice {
    pub from: Timestamp,
    pub to: Option<Timestamp>,
    pub orders: HashMap<OrderId, Accepted>,
}

/// An order, the state of its event at the snapshot, and the later findings about it.
pub struct Accepted {
    /// Position in the shard map.
    pub shard: usize,
    pub created_at: Timestamp,
    pub receipt_key: String,
    /// Length of the receipt's text, in bytes.
    pub receipt_length: usize,
    /// The state of the receipt; `None` until S3 is checked.
    pub receipt: Option<Receipt>,
    pub queued: Queued,
    /// Places of the records in their topics.
    pub events: Vec<Place>,
    pub notifications: Vec<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// The event is in the outbox.
    Waiting,
    /// The event is in `outbox_dead`.
    Refused,
    /// The relay has published it.
    No,
}

impl Accepted {
    fn new(shard: usize, stored: StoredOrder, queued: Queued, map: &ShardMap) -> Self {
        let StoredOrder { order, receipt_pending, .. } = stored;
        Self {
            shard,
            created_at: order.created_at,
            receipt_length: receipt::text(&order, map.shard_of(&order.user_id)).len(),
            receipt_key: order.receipt_s3_key,
            receipt: receipt_pending.then_some(Receipt::Pending),
            queued,
            events: Vec::new(),
            notifications: Vec::new(),
        }
    }
}

/// Finds the end of the slice that begins with `from`, so that it has no more than [`SLICE`] orders; `None` if it has
/// all.
pub async fn find_end(shards: &mut [Session], from: Timestamp) -> anyhow::Result<Option<Timestamp>> {
    let most = orders_in_a_slice() / shards.len();
    let mut beyond = Vec::new();
    for shard in shards {
        beyond.push(shard.accepted_after(from, most).await?);
    }
    Ok(first_after(from, &beyond))
}

fn orders_in_a_slice() -> usize {
    fail::fail_point!("verify::orders-in-a-slice", |fewer| fewer.and_then(|fewer| fewer.parse().ok()).unwrap_or(SLICE));
    SLICE
}

/// Returns the earliest time of the orders that would be too many. If one moment alone has too many, the slice is that
/// moment.
fn first_after(from: Timestamp, beyond: &[Option<Timestamp>]) -> Option<Timestamp> {
    let end = beyond.iter().flatten().min()?;
    Some(*end).filter(|end| *end > from).or_else(|| Timestamp::from_unix_microseconds(from.unix_microseconds() + 1))
}

impl Slice {
    pub async fn read(shards: &mut [Session], from: Timestamp, to: Option<Timestamp>) -> anyhow::Result<Self> {
        let mut slice = Self { from, to, orders: HashMap::new() };
        for shard in shards {
            shard.snapshot(&mut slice).await?;
        }
        Ok(slice)
    }

    pub fn contains(&self, moment: Timestamp) -> bool {
        moment >= self.from && self.to.is_none_or(|to| moment < to)
    }

    pub fn of_shard(&self, shard: usize) -> impl Iterator<Item = (OrderId, &Accepted)> {
        self.orders.iter().filter(move |(_, order)| order.shard == shard).map(|(id, order)| (*id, order))
    }
}

/// The only connection to a shard. A transaction never lasts longer than a statement.
pub struct Session {
    pub shard: orderflow_core::Shard,
    connection: PgConnection,
}

impl Session {
    /// Connects, and checks that this is the shard, and that its events and receipts are in the given topic and bucket.
    pub async fn open(settings: &Settings, shard: &orderflow_core::Shard, dsn: &Dsn) -> anyhow::Result<Self> {
        let variable = postgres::dsn_variable(shard);
        let options = postgres::options(&variable, &dsn.url, dsn.ca.as_ref(), "orderflow-verify")?;
        let connection = postgres::connect(&options).await.with_context(|| shard.name.clone())?;
        let mut session = Self { shard: shard.clone(), connection };
        let expected = Expected::new(shard, &settings.shards);
        session
            .ask(async |connection| expected.check(connection).await.map(drop).map_err(MetaError::into_sqlx))
            .await?;

        const NAMES: &str = "SELECT topic, bucket FROM orderflow_meta";
        let (topic, bucket): (Option<String>, Option<String>) =
            session.ask(async |connection| sqlx::query_as(NAMES).fetch_one(connection).await).await?;
        for (variable, given, known) in
            [("KAFKA_TOPIC", &settings.kafka.kafka_topic, topic), ("S3_BUCKET", &settings.s3.s3_bucket, bucket)]
        {
            if let Some(known) = known {
                ensure!(*given == known, "{variable} is {given}, but {} uses {known}", shard.name);
            }
        }
        Ok(session)
    }

    /// Locks out other repairs until the session ends.
    pub async fn lock(&mut self) -> anyhow::Result<()> {
        let query = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK);
        if self.ask(async |connection| query.fetch_one(connection).await).await? {
            return Ok(());
        }
        bail!("another verify --repair works on {}: wait until it has ended", self.shard.name)
    }

    /// Returns the time of acceptance of the order that has `most` orders before it, not counting those before `from`.
    async fn accepted_after(&mut self, from: Timestamp, most: usize) -> anyhow::Result<Option<Timestamp>> {
        const SELECT: &str =
            "SELECT created_at FROM orders WHERE created_at >= $1 ORDER BY created_at OFFSET $2 LIMIT 1";
        let query = sqlx::query_scalar(SELECT).bind(OffsetDateTime::from(from)).bind(most as i64);
        let moment: Option<OffsetDateTime> =
            self.ask(async |connection| query.fetch_optional(connection).await).await?;
        Ok(moment.map(Timestamp::from))
    }

    /// Reads orders and queues in one snapshot. The outbox has no index by event, so it is read once and hashed. It is
    /// joined, because a subquery would run for each order once the planner takes the outbox for too large to hash.
    async fn snapshot(&mut self, slice: &mut Slice) -> anyhow::Result<()> {
        const SELECT: &str = concat!(
            "SELECT ",
            order_columns!(),
            ", outbox.event_id IS NOT NULL AS waiting, outbox_dead.event_id IS NOT NULL AS refused \
             FROM orders \
             LEFT JOIN outbox ON outbox.event_id = orders.id \
             LEFT JOIN outbox_dead ON outbox_dead.event_id = orders.id \
             WHERE orders.created_at >= $1 AND orders.created_at < $2"
        );
        let known = self.ask(maps::read).await?;
        let index = self.shard.index.get();
        // Orders of a map that was written after the maps were read.
        let mut newer = Vec::new();
        let to = slice.to.unwrap_or(Timestamp::MAX);
        let query = sqlx::query(SELECT).bind(OffsetDateTime::from(slice.from)).bind(OffsetDateTime::from(to));
        self.ask(async |connection| {
            let mut rows = query.fetch(connection);
            while let Some(row) = rows.try_next().await? {
                let stored = StoredOrder::from_row(&row)?;
                let queued = match (row.try_get("waiting")?, row.try_get("refused")?) {
                    (true, _) => Queued::Waiting,
                    (false, true) => Queued::Refused,
                    (false, false) => Queued::No,
                };
                match known.of(stored.map_epoch) {
                    Some(map) => {
                        slice.orders.insert(stored.order.id, Accepted::new(index, stored, queued, map));
                    }
                    None => newer.push((stored, queued)),
                }
            }
            Ok(())
        })
        .await?;
        if newer.is_empty() {
            return Ok(());
        }
        let known = self.ask(maps::read).await?;
        for (stored, queued) in newer {
            let map = known.of(stored.map_epoch).ok_or_else(|| unknown_epoch(stored.map_epoch))?;
            slice.orders.insert(stored.order.id, Accepted::new(index, stored, queued, map));
        }
        Ok(())
    }

    /// Returns those of `ids` that are orders of this shard now.
    pub async fn existing(&mut self, ids: &[OrderId]) -> anyhow::Result<Vec<OrderId>> {
        let query = sqlx::query_scalar("SELECT id FROM orders WHERE id = ANY($1)").bind(ids);
        self.ask(async |connection| query.fetch_all(connection).await).await
    }

    /// Makes the events of these orders again.
    pub async fn events(&mut self, ids: &[OrderId]) -> anyhow::Result<Vec<OrderCreated>> {
        const SELECT: &str =
            concat!("SELECT ", order_columns!(), " FROM orders WHERE id = ANY($1) ORDER BY created_at, id");
        let query = sqlx::query_as(SELECT).bind(ids);
        let orders: Vec<StoredOrder> = self.ask(async |connection| query.fetch_all(connection).await).await?;
        let maps = self.ask(maps::read).await?;
        let event = |StoredOrder { order, map_epoch, .. }: &StoredOrder| {
            let map = maps.of(*map_epoch).ok_or_else(|| unknown_epoch(*map_epoch))?;
            Ok(OrderCreated::new(order, map.shard_of(&order.user_id)))
        };
        orders.iter().map(event).collect()
    }

    pub async fn ask<T>(
        &mut self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> anyhow::Result<T> {
        let name = &self.shard.name;
        answer(query(&mut self.connection)).await.with_context(|| name.clone())
    }
}

fn unknown_epoch(epoch: MapEpoch) -> sqlx::Error {
    sqlx::Error::Decode(format!("orderflow_map has no epoch {epoch}").into())
}

async fn answer<T>(query: impl Future<Output = Result<T, sqlx::Error>>) -> anyhow::Result<T> {
    match tokio::time::timeout(ANSWER_TIMEOUT, query).await {
        Ok(answer) => Ok(answer?),
        Err(_) => bail!("no answer within {} s", ANSWER_TIMEOUT.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(microseconds: i64) -> Timestamp {
        Timestamp::from_unix_microseconds(microseconds).unwrap()
    }

    #[test]
    fn a_slice_ends_where_the_first_shard_has_too_many() {
        assert_eq!(first_after(at(5), &[Some(at(9)), None, Some(at(7))]), Some(at(7)));
        assert_eq!(first_after(at(5), &[None, None]), None);
    }

    #[test]
    fn too_many_orders_of_one_moment_are_a_slice_of_their_own() {
        assert_eq!(first_after(at(5), &[Some(at(5)), None]), Some(at(6)));
    }

    #[test]
    fn the_end_of_a_slice_is_in_the_next() {
        let slice = |to| Slice { from: at(5), to, orders: HashMap::new() };
        assert_eq!([4, 5, 6, 7].map(|moment| slice(Some(at(7))).contains(at(moment))), [false, true, true, false]);
        assert!(slice(None).contains(at(8)) && !slice(None).contains(at(4)));
    }
}
