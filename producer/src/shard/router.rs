//! Takes the orders that a shard did not store because it no longer owns their range, or because the range is fenced, and
//! hands them to the shard that owns the range, with the same ids. An order waits here while no shard does, at most until its
//! request gives up. Orders that were not refused wait for none of these.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use orderflow_core::{OrderCreated, RangeId, ShardNumber};
use orderflow_service::shutdown::CancellationToken;
use sqlx::PgConnection;
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep},
};

use super::{
    PlaceError, Shards,
    maps::Maps,
    queue::{Route, Submission},
};

/// Time between two checks for the shard of a waiting order.
const INTERVAL: Duration = Duration::from_millis(5);

/// Longest wait for an answer of a database: a frozen one must not hold up the orders of others for long.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);

/// The time before the request's deadline at which an order that waits is answered.
const AHEAD: Duration = Duration::from_millis(20);

/// An order that a shard did not store.
pub struct Moved {
    pub submission: Submission,
    pub refused_by: ShardNumber,
}

/// The known maps, and the way of a refused order to the router.
#[derive(Clone)]
pub struct Moves {
    pub maps: Maps,
    pub refused: mpsc::UnboundedSender<Moved>,
}

/// The task that routes them. Clones share the waiting orders.
#[derive(Clone)]
pub struct Router {
    shards: Shards,
    maps: Maps,
    waiting: Arc<Mutex<Waiting>>,
}

struct Waiting {
    incoming: mpsc::UnboundedReceiver<Moved>,
    orders: Vec<Moved>,
}

impl Router {
    pub fn new(shards: Shards, maps: Maps, incoming: mpsc::UnboundedReceiver<Moved>) -> Self {
        Self { shards, maps, waiting: Arc::new(Mutex::new(Waiting { incoming, orders: Vec::new() })) }
    }

    pub async fn run(self, stop: CancellationToken) {
        let mut waiting = self.waiting.lock().await;
        let Waiting { incoming, orders } = &mut *waiting;
        loop {
            if orders.is_empty() {
                tokio::select! {
                    moved = incoming.recv() => match moved {
                        Some(moved) => orders.push(moved),
                        None => return,
                    },
                    () = stop.cancelled() => return,
                }
            }
            while let Ok(moved) = incoming.try_recv() {
                orders.push(moved);
            }
            self.route(orders).await;
            if stop.is_cancelled() {
                orders.drain(..).for_each(give_up);
                return;
            }
            if !orders.is_empty() {
                sleep(INTERVAL).await;
            }
        }
    }

    /// Hands over the orders whose range a shard stores now, and answers those whose requests give up.
    async fn route(&self, orders: &mut Vec<Moved>) {
        let refused_by: BTreeSet<ShardNumber> = orders.iter().map(|moved| moved.refused_by).collect();
        join_all(refused_by.into_iter().filter_map(|number| self.shards.numbered(number)).map(async |shard| {
            let maps = &self.maps;
            let read = async |connection: &mut PgConnection| maps.read_from(connection).await;
            if let Err(error) = shard.pool().ask(ANSWER_TIMEOUT, read).await {
                tracing::debug!(shard = shard.name(), %error, "the shard map cannot be read");
            }
        }))
        .await;
        let routes = self.maps.routes();
        let targets: BTreeSet<ShardNumber> =
            orders.iter().map(|moved| routes.shard_of(&moved.submission.order.user_id).number).collect();
        let owned =
            join_all(targets.into_iter().filter_map(|number| self.shards.numbered(number)).map(async |shard| {
                let owned = shard.pool().ask(ANSWER_TIMEOUT, owned).await.unwrap_or_default();
                (shard.shard().number, owned)
            }))
            .await;
        let owned: BTreeMap<ShardNumber, Vec<RangeId>> = owned.into_iter().collect();
        let now = Instant::now();
        for mut moved in std::mem::take(orders) {
            let (range, shard) = routes.of(&moved.submission.order.user_id);
            let target = self.shards.numbered(shard.number);
            let is_owned = owned.get(&shard.number).is_some_and(|owned| owned.contains(&range));
            if now + AHEAD >= moved.submission.deadline {
                give_up(moved);
            } else if let Some(target) = target.filter(|_| is_owned) {
                let submission = &mut moved.submission;
                submission.route = Route { epoch: routes.epoch, range };
                submission.payload = OrderCreated::new(&submission.order, shard).encode();
                if let Err(submission) = target.requeue(moved.submission) {
                    give_up(Moved { submission, refused_by: moved.refused_by });
                }
            } else {
                orders.push(moved);
            }
        }
    }
}

fn give_up(Moved { submission, .. }: Moved) {
    let error = if submission.is_unknown {
        PlaceError::OutcomeUnknown(submission.order.id)
    } else {
        PlaceError::NotAccepted("its users are moving to another shard".to_owned())
    };
    // This fails if the request has given up.
    let _ = submission.reply.send(Err(error));
}

/// Reads the ranges that a database stores now.
async fn owned(connection: &mut PgConnection) -> Result<Vec<RangeId>, sqlx::Error> {
    const OWNED: &str = "SELECT CASE WHEN fenced_until <= clock_timestamp() THEN owned || fenced ELSE owned END \
                         FROM orderflow_gate WHERE slot = 0";
    sqlx::query_scalar(OWNED).fetch_one(connection).await
}
