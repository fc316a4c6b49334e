//! One shard as the API sees it: place an order, read orders. Behind it are a bounded queue, writers that own one
//! connection each, and a small pool for reading.

mod bisect;
pub(crate) mod durability;
pub(crate) mod maps;
pub(crate) mod meta;
mod order_row;
mod queue;
mod reader;
mod router;
mod spans;
mod statement;
mod writer;

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use orderflow_core::{
    Fingerprint, IdempotencyKey, MapEpoch, NewOrder, Order, OrderCreated, OrderId, Routes, ShardNumber, Timestamp,
};
use orderflow_service::{Dependency, postgres::Pool, prometheus::metrics::gauge::Gauge};
use sqlx::postgres::PgConnectOptions;
use tokio::{
    sync::{Notify, Semaphore, mpsc, oneshot},
    time::Instant,
};
use uuid::Uuid;

pub use order_row::StoredOrder;
pub(crate) use order_row::order_columns;
pub use reader::{Figures, MOST_COUNTED, Position, Queued, QueuedEvents, ReadError};
pub use router::{Moved, Moves, Router};
pub use writer::Writer;

use crate::metrics::Metrics;
use queue::{Route, Submission, Ticket};

/// A handle of a shard; clones share its queue and its pool.
#[derive(Clone)]
pub struct Shard {
    inner: Arc<Inner>,
}

/// All shards of the settings, in their order.
#[derive(Clone)]
pub struct Shards(Arc<[Shard]>);

impl Shards {
    pub fn new(shards: Vec<Shard>) -> Self {
        Self(shards.into())
    }

    pub fn numbered(&self, number: ShardNumber) -> Option<&Shard> {
        self.0.iter().find(|shard| shard.shard().number == number)
    }
}

impl Deref for Shards {
    type Target = [Shard];

    fn deref(&self) -> &[Shard] {
        &self.0
    }
}

struct Inner {
    shard: orderflow_core::Shard,
    queue: mpsc::Sender<Submission>,
    /// The queue of orders that another shard did not take.
    moved: mpsc::UnboundedSender<Submission>,
    order_timeout: Duration,
    health: Health,
    pool: Pool,
    /// One permit for each concurrent query of a request.
    readers: Arc<Semaphore>,
    metrics: Metrics,
    /// The number of orders in the queue.
    write_queue: Gauge,
}

/// The state of the shard's database, as writers and readers know it.
#[derive(Clone)]
pub struct Health {
    dependency: Dependency,
    /// Number of writers that hold a connection; orders are refused at once only while it is 0.
    connected: Arc<AtomicUsize>,
    reachable: Arc<AtomicBool>,
}

/// The doorbells of a shard, rung after each batch: events wait to be published, and receipts to be written.
#[derive(Clone, Default)]
pub struct Doorbells {
    pub relay: Arc<Notify>,
    pub receipts: Arc<Notify>,
}

/// The result of placing an order, with the epoch of the shard map under which it was placed.
#[derive(Clone, Debug)]
pub enum Placed {
    Created(Order, MapEpoch),
    /// The equal order that was stored with the same key before.
    Replayed(Order, MapEpoch),
}

/// The reason why an order did not get a 201.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PlaceError {
    /// Definite: nothing was stored and nothing will be.
    #[error("{0}")]
    NotAccepted(String),
    /// Definite: the shard's queue is full.
    #[error("too many orders are waiting for {0}")]
    QueueFull(String),
    /// Indefinite: the database did not answer, so the order may be stored.
    #[error("the shard did not answer in time; the order {0} may have been stored")]
    OutcomeUnknown(OrderId),
    /// Definite: the shard does not store the orders of this user, or not now. The router looks for the shard that does.
    #[error("its users are moving to another shard")]
    Moved,
    /// The key had been used for other fields.
    #[error("the Idempotency-Key was used for another order")]
    KeyReused,
    /// Definite: the database refuses this very order.
    #[error("the database refused the order: {0}")]
    Refused(String),
}

impl Shard {
    /// Creates the handle, and the writers to run beside it.
    pub fn new(
        shard: orderflow_core::Shard,
        options: &PgConnectOptions,
        dependency: Dependency,
        doorbells: &Doorbells,
        metrics: &Metrics,
        settings: &crate::Settings,
        moves: &Moves,
    ) -> (Self, Vec<Writer>) {
        let ((queue, moved), submissions) = queue::bounded(settings.shard_queue);
        // Until a writer has tried to connect, orders wait rather than being refused.
        let health = Health { dependency, connected: Arc::default(), reachable: Arc::new(AtomicBool::new(true)) };
        let expected = meta::Expected::new(&shard, &settings.shards);
        // The relay's listener uses one connection. At least two remain: one for requests, one for receipts and purge.
        let connections = (settings.shard_readers - 1).max(2);
        let pool = pool(connections, options, &expected);
        // Requests leave one connection to receipts and purge.
        let readers = Arc::new(Semaphore::new(connections - 1));
        let writers = (0..settings.shard_writers)
            .map(|_| {
                Writer::new(
                    options.clone(),
                    expected.clone(),
                    moves.clone(),
                    submissions.clone(),
                    health.clone(),
                    doorbells.clone(),
                    metrics.shard(&shard.name),
                )
            })
            .collect();
        let order_timeout = settings.order_timeout();
        let (metrics, write_queue) = (metrics.clone(), metrics.shard(&shard.name).write_queue);
        let inner = Inner { shard, queue, moved, order_timeout, health, pool, readers, metrics, write_queue };
        (Self { inner: Arc::new(inner) }, writers)
    }

    pub fn shard(&self) -> &orderflow_core::Shard {
        &self.inner.shard
    }

    pub fn name(&self) -> &str {
        &self.inner.shard.name
    }

    /// Connections for reading, also used by the receipt workers and the purge.
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    /// Queues an order that another shard did not take. Returns it if there are no writers any more.
    fn requeue(&self, submission: Submission) -> Result<(), Submission> {
        self.inner.moved.send(submission).map_err(|returned| returned.0)
    }

    /// Stores an order, within the order timeout. `routes` lead its user here.
    pub async fn place(
        &self,
        new: NewOrder,
        key: Option<IdempotencyKey>,
        traceparent: Option<String>,
        routes: &Routes,
    ) -> Result<Placed, PlaceError> {
        let inner = &*self.inner;
        // During an outage the answer is immediate: requests must not queue for a shard that is down.
        if !inner.health.reachable.load(Ordering::Relaxed) {
            return Err(PlaceError::NotAccepted(format!("{} is down", self.name())));
        }
        let fingerprint = Fingerprint::new(&new);
        let id = Uuid::now_v7();
        let order = new.into_order(id, Timestamp::now());
        let (range, shard) = routes.of(&order.user_id);
        let event = OrderCreated::new(&order, shard);
        let (payload, traceparent) = (event.encode(), traceparent.unwrap_or_else(|| event.traceparent()));
        let queued = Instant::now();
        let deadline = queued + inner.order_timeout;
        let (reply, answer) = oneshot::channel();
        let ticket = Ticket::default();
        let submission = Submission {
            order,
            route: Route { epoch: routes.epoch, range },
            is_unknown: false,
            key,
            fingerprint,
            payload,
            traceparent,
            queued,
            deadline,
            ticket: ticket.clone(),
            reply,
        };
        if inner.queue.try_send(submission).is_err() {
            inner.metrics.queue_full.inc();
            return Err(PlaceError::QueueFull(self.name().to_owned()));
        }
        inner.write_queue.set((inner.queue.max_capacity() - inner.queue.capacity()) as i64);
        // If it is dropped before the answer (the client disconnected), it withdraws an order that still waits in the
        // queue.
        let withdrawal = ticket.withdraw_on_drop();
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(outcome)) => outcome,
            // No answer in time, or the writer is gone.
            Ok(Err(_)) | Err(_) if withdrawal.withdraw() => {
                Err(PlaceError::NotAccepted(format!("{} did not take the order in time", self.name())))
            }
            Ok(Err(_)) | Err(_) => Err(PlaceError::OutcomeUnknown(id)),
        }
    }
}

/// Creates a pool whose connections all lead to the right database.
fn pool(most: usize, options: &PgConnectOptions, expected: &meta::Expected) -> Pool {
    let expected = Arc::new(expected.clone());
    Pool::new(most, options.clone(), move |connection| {
        let expected = expected.clone();
        Box::pin(async move { expected.check(connection).await.map(drop).map_err(meta::MetaError::into_sqlx) })
    })
}

/// The reason why a writer has no usable connection.
enum ConnectionProblem {
    /// The database is down, and may recover without help.
    Down(String),
    /// An operator has to fix it.
    Unusable(String),
}

impl ConnectionProblem {
    fn no_answer() -> Self {
        Self::Down("no answer in time".to_owned())
    }
}

/// The mark of a writer that has a connection, held as long as that.
struct Presence(Arc<AtomicUsize>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Health {
    fn mark_connected(&self) -> Presence {
        self.connected.fetch_add(1, Ordering::Relaxed);
        Presence(self.connected.clone())
    }

    fn up(&self) {
        self.reachable.store(true, Ordering::Relaxed);
        self.dependency.up();
    }

    /// Records a problem of one writer. It is no outage while another writer has a connection; a wrong database is
    /// wrong for all.
    fn record(&self, problem: &ConnectionProblem) {
        match problem {
            ConnectionProblem::Down(reason) if self.connected.load(Ordering::Relaxed) > 0 => {
                tracing::debug!(reason, "a writer has no connection");
            }
            ConnectionProblem::Down(reason) => {
                self.reachable.store(false, Ordering::Relaxed);
                self.dependency.down(reason);
            }
            ConnectionProblem::Unusable(reason) => {
                self.reachable.store(false, Ordering::Relaxed);
                self.dependency.unusable(reason);
            }
        }
    }
}
