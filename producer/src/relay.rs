//! The relay of one shard: moves events from the outbox into Kafka, each exactly once, in the order of their `seq`.
//!
//! One Kafka transaction holds a batch of events and a progress record that lists them; only after its commit are the
//! rows deleted. So at most one batch, the last, can be published and not deleted, and its list is in the last
//! committed progress record. In any doubt (unknown commit, lost session, fenced) the relay drops everything and
//! restarts: it takes the lock, fences its predecessor, reads that record, deletes the events that it lists, and goes
//! on.
//!
//! Several processes run a relay for a shard; the advisory lock keeps all but one waiting. What makes it safe is
//! Kafka's fencing, not the lock: a leader that was frozen and wakes up finds its transactional id taken.

mod outbox;
mod progress;
mod publisher;
mod session;
mod spans;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use orderflow_core::Topics;
use orderflow_service::{Backoff, Dependency, failpoint::defect, kafka, shutdown::CancellationToken};
use sqlx::postgres::PgConnectOptions;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use crate::{metrics::ShardMetrics, shard::meta::Expected};
use progress::Progress;
use publisher::{Published, Publisher};
pub use session::CHANNEL;
use session::{BATCH, KEEPALIVE, LeaderSession, OutboxListener};

/// Longest time for which an idle relay waits before it polls: a safety net, since the writers wake it.
const POLL: Duration = Duration::from_secs(1);

/// Shortest time between the beginnings of two transactions, and between two notifications of another process's relay.
/// The first event after a pause is published at once; under load a transaction costs Kafka and this process much the
/// same for one event as for dozens.
const PACE: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub struct Relay {
    pub shard: orderflow_core::Shard,
    pub topics: Topics,
    pub options: PgConnectOptions,
    /// The shard that the database must be.
    pub expected: Expected,
    pub kafka: kafka::Settings,
    /// The doorbell that this process's writers ring.
    pub doorbell: Arc<Notify>,
    pub dependency: Dependency,
    pub metrics: ShardMetrics,
}

impl Relay {
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        while !stop.is_cancelled() {
            let turn = async {
                let session = self.stand_by(&stop).await.context("wait for the relay's lock")?;
                let Some(session) = session else { return Ok(()) };
                let lead = self.lead(session, &stop, &mut backoff).await;
                self.metrics.relay_leads.set(0);
                lead
            };
            if let Err(error) = turn.await {
                let delay = backoff.next_delay();
                tracing::warn!(
                    shard = self.shard.name,
                    error = format!("{error:#}"),
                    retry_ms = delay.as_millis() as u64,
                    "relay restarting"
                );
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }

    /// Waits until this process may lead; `None` if it is stopped before. Until then it notifies the leader of its
    /// writers' events: a NOTIFY in the writers' own statement would serialize their commits (it holds a lock over the
    /// sync).
    async fn stand_by(&self, stop: &CancellationToken) -> anyhow::Result<Option<LeaderSession>> {
        let mut session = LeaderSession::open(&self.options, &self.expected, &self.metrics.unsafe_settings).await?;
        let mut next_try = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = sleep_until(next_try) => {
                    if session.try_lead().await? {
                        return Ok(Some(session));
                    }
                    next_try += KEEPALIVE;
                }
                () = self.doorbell.notified() => {
                    session.notify().await?;
                    tokio::time::sleep(PACE).await;
                }
            }
        }
    }

    /// Starts a publisher, which fences every other, including this process's former one. Returns it with the last
    /// committed batch.
    async fn take_over(&self, session: &mut LeaderSession) -> anyhow::Result<(Publisher, Option<Progress>)> {
        let (settings, topics, shard) = (self.kafka.clone(), self.topics.clone(), self.shard.clone());
        let start = move || Publisher::start(&settings, &topics, &shard);
        let started = session.run_with_keepalive(start).await.context("keep the relay's session")?;
        let started = started.inspect_err(|error| self.dependency.down(format!("{error:#}")));
        let started = started.context("take over in Kafka")?;
        self.dependency.up();
        Ok(started)
    }

    /// Publishes until stopped (`Ok`) or in doubt (`Err`).
    async fn lead(
        &self,
        mut session: LeaderSession,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> anyhow::Result<()> {
        let (mut publisher, last) = self.take_over(&mut session).await?;
        if let Some(last) = last.filter(|_| !defect("relay::ignores-progress")) {
            let deleted = session.delete_published(&last).await.context("delete what had been published")?;
            tracing::debug!(shard = self.shard.name, deleted, "settled the last batch of the previous relay");
        }
        tracing::info!(shard = self.shard.name, "leads the relay");
        self.metrics.relay_leads.set(1);
        let mut listener = OutboxListener::new(&self.options);
        // After a refusal fewer events are published together, until the refused one is alone: Kafka's limit applies to
        // events that are sent together.
        let mut most = BATCH;
        // The rows that were read while Kafka was busy with the previous batch.
        let mut ahead = Vec::new();

        while !stop.is_cancelled() {
            let batch = match std::mem::take(&mut ahead) {
                read if !read.is_empty() => read,
                _ => session.next_batch(most).await.context("read the outbox")?,
            };
            if batch.is_empty() {
                let woken = async {
                    tokio::select! {
                        () = self.doorbell.notified() => {}
                        () = listener.next() => {}
                        () = stop.cancelled() => {}
                    }
                };
                // The timeout is the safety net, and keeps the session from idling too long.
                let _ = timeout(POLL, woken).await;
                continue;
            }
            let (full, began) = (batch.len() == most, Instant::now());
            let last = batch.last().map(|row| row.seq).filter(|_| full && most == BATCH);
            if defect("relay::deletes-before-commit") {
                session.delete(&batch).await?;
            }
            let publish = move || {
                let published = publisher.publish(&batch);
                (publisher, batch, published)
            };
            // Only after a full batch more rows may already wait.
            let read_ahead = async |session: &mut LeaderSession| match last {
                Some(last) => session.batch_after(last).await,
                None => Ok(Vec::new()),
            };
            let published = session.run_and_query(publish, read_ahead).await.context("keep the relay's session")?;
            let ((back, batch, published), next) = published;
            publisher = back;
            match published {
                Ok(Published::All) => {
                    ahead = next;
                    fail::fail_point!("relay::before-delete", |_| std::process::abort());
                    session.delete(&batch).await.context("delete published events")?;
                    self.metrics.relay_batch_size.observe(batch.len() as f64);
                    self.metrics.relay_events.inc_by(batch.len() as u64);
                    most = (most + most.div_ceil(8)).min(BATCH);
                }
                Ok(Published::TooMany) => {
                    most = batch.len() / 2;
                    tracing::warn!(
                        shard = self.shard.name,
                        topic = self.topics.relay,
                        events = batch.len(),
                        "the progress record is too large for its topic: fewer events are published together. \
                         Raise max.message.bytes of the topic"
                    );
                    publisher = self.take_over(&mut session).await?.0;
                }
                Ok(Published::Refused { .. }) if batch.len() > 1 => {
                    most = batch.len() / 2;
                    publisher = self.take_over(&mut session).await?.0;
                }
                Ok(Published::Refused { seq, reason }) => {
                    let event_id = session.move_to_dead(seq, &reason).await.context("move an event to outbox_dead")?;
                    self.metrics.relay_dead.inc();
                    tracing::error!(
                        shard = self.shard.name,
                        ?event_id,
                        reason,
                        "Kafka refused an event for good: it is in outbox_dead, and its order has no notification"
                    );
                    publisher = self.take_over(&mut session).await?.0;
                }
                Err(error) => {
                    self.dependency.down(format!("{error:#}"));
                    return Err(error.context("publish a batch"));
                }
            }
            self.dependency.up();
            backoff.reset();
            if !full {
                // Notifications that arrive now are drained, so that they do not pile up.
                tokio::select! {
                    () = sleep_until(began + PACE) => {}
                    () = listener.drain() => {}
                    () = stop.cancelled() => {}
                }
            }
        }
        Ok(())
    }
}
