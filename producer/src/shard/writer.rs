//! A writer owns one connection. It takes the queued orders, stores them with one statement, answers the waiting
//! requests, and repeats. It needs no timer: the next batch gathers while a commit syncs.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use orderflow_service::{Backoff, failpoint::defect, postgres, shutdown::CancellationToken, traces::Span};
use sqlx::{PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::{Mutex, oneshot},
    time::{Instant, timeout, timeout_at},
};
use uuid::Uuid;

use super::{
    ConnectionProblem, Doorbells, Health, Moved, Moves, PlaceError, Placed, Presence,
    bisect::{self, Findings, LONGEST_SEARCH, Limits, Refused},
    durability,
    meta::{Expected, MetaError},
    queue::{Submission, Submissions},
    spans,
    statement::{self, Outcomes},
};
use crate::metrics::ShardMetrics;

/// Orders in one statement. More would only make the first of them wait longer.
const BATCH: usize = 512;

/// Idle time of a connection after which the writer checks that it still leads to the right database.
const IDLE: Duration = Duration::from_secs(2);

/// Longest wait for an answer of the database that no order waits for.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Time on one connection after which an error of the server counts as a new failure.
const SERVED_WELL: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Writer {
    options: PgConnectOptions,
    expected: Expected,
    moves: Moves,
    submissions: Arc<Mutex<Submissions>>,
    health: Health,
    doorbells: Doorbells,
    metrics: ShardMetrics,
}

/// The result of waiting for the queue.
enum Gathered {
    Batch(Vec<Submission>),
    Nothing,
    Closed,
}

/// A connection, and the mark that this writer has one.
struct Connection {
    postgres: PgConnection,
    _presence: Presence,
}

/// The reason why a connection is no longer served.
enum Served {
    QueueClosed,
    ConnectionLost,
    /// The server answers and stores nothing: it is read-only after a failover, or its disk is full.
    Refused,
}

impl Writer {
    pub(super) fn new(
        options: PgConnectOptions,
        expected: Expected,
        moves: Moves,
        submissions: Arc<Mutex<Submissions>>,
        health: Health,
        doorbells: Doorbells,
        metrics: ShardMetrics,
    ) -> Self {
        Self { options, expected, moves, submissions, health, doorbells, metrics }
    }

    /// Runs until the queue is closed and empty, or, while the database is down, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let (mut refused, mut suspects) = (false, VecDeque::new());
        loop {
            if let Some(connection) = self.connect().await {
                if !refused {
                    self.health.up();
                }
                let began = Instant::now();
                match self.serve(connection, &mut suspects).await {
                    Served::QueueClosed => return,
                    Served::ConnectionLost => {
                        refused = false;
                        backoff.reset();
                        continue;
                    }
                    // The next connection may reach another server. Only a stored batch marks the shard as up.
                    Served::Refused => {
                        refused = true;
                        // After a long time on this connection the refusal is a new failure.
                        if began.elapsed() > SERVED_WELL {
                            backoff.reset();
                        }
                    }
                }
            }
            tokio::select! {
                () = backoff.wait() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Connects to the database, and checks that it is the right one. Records a problem in the health.
    async fn connect(&self) -> Option<Connection> {
        let opened = async {
            let mut postgres = postgres::connect(&self.options)
                .await
                .map_err(|error| ConnectionProblem::Down(format!("{error:#}")))?;
            self.check(&mut postgres).await?;
            let shard = self.expected.shard_name();
            let required = durability::require(&mut postgres, shard, &self.metrics.unsafe_settings);
            match timeout(CHECK_TIMEOUT, required).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(ConnectionProblem::Down(format!("require synchronous_commit: {error}"))),
                Err(_) => return Err(ConnectionProblem::no_answer()),
            }
            Ok(Connection { postgres, _presence: self.health.mark_connected() })
        };
        opened.await.inspect_err(|problem| self.health.record(problem)).ok()
    }

    /// Checks that the database answers and is the expected one.
    async fn check(&self, postgres: &mut PgConnection) -> Result<(), ConnectionProblem> {
        let check = async {
            let epoch = self.expected.check(postgres).await?;
            self.moves.maps.know(postgres, [epoch]).await.map_err(MetaError::from)
        };
        match timeout(CHECK_TIMEOUT, check).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(MetaError::Unusable(reason))) => Err(ConnectionProblem::Unusable(reason)),
            Ok(Err(MetaError::Database(error))) => {
                Err(ConnectionProblem::Down(format!("read orderflow_meta: {error}")))
            }
            Err(_) => Err(ConnectionProblem::no_answer()),
        }
    }

    /// Stores batches until the queue is closed or the connection is unusable.
    async fn serve(&self, connection: Connection, suspects: &mut VecDeque<Refused>) -> Served {
        let mut connection = Some(connection);
        loop {
            let Some(open) = &mut connection else { return Served::ConnectionLost };
            match self.gather().await {
                Gathered::Closed => return Served::QueueClosed,
                Gathered::Nothing => match self.check(&mut open.postgres).await {
                    Ok(()) => self.health.up(),
                    Err(problem) => {
                        connection = None;
                        self.health.record(&problem);
                    }
                },
                Gathered::Batch(mut batch) => {
                    self.metrics.batch_size.observe(batch.len() as f64);
                    let started = Instant::now();
                    statement::sort(&mut batch);
                    if defect("writer::answers-before-commit") {
                        answer_early(&mut batch);
                    }
                    let mut span = spans::of_batch(&batch, self.expected.shard_name(), &self.options);
                    let refused = self.store_and_answer(&mut connection, batch, suspects, &mut span).await;
                    drop(span);
                    self.metrics.batch_seconds.observe(started.elapsed().as_secs_f64());
                    if refused {
                        return Served::Refused;
                    }
                }
            }
        }
    }

    async fn gather(&self) -> Gathered {
        let mut batch = Vec::new();
        let receive = async {
            let mut submissions = self.submissions.lock().await;
            let count = submissions.receive(&mut batch, BATCH).await;
            self.metrics.write_queue.set(submissions.len() as i64);
            count
        };
        let received = timeout(IDLE, receive).await;
        match received {
            Err(_) => {
                // A request sets it as well, and may have done so after the queue was emptied.
                self.metrics.write_queue.set(0);
                Gathered::Nothing
            }
            Ok(0) => Gathered::Closed,
            Ok(_) => {
                // A request that has given up needs no batch, whose deadline would be over as well.
                let now = Instant::now();
                batch.retain(|submission| submission.deadline > now && submission.ticket.take());
                for submission in &batch {
                    self.metrics.write_queue_seconds.observe(submission.queued.elapsed().as_secs_f64());
                }
                if batch.is_empty() { Gathered::Nothing } else { Gathered::Batch(batch) }
            }
        }
    }

    /// Stores a batch and answers every submission. A batch whose outcome is unknown is sent again over a new
    /// connection, with the same ids, until its requests have given up. Leaves no connection if the last one is
    /// unusable. Returns true if the server refuses everything.
    async fn store_and_answer(
        &self,
        connection: &mut Option<Connection>,
        mut batch: Vec<Submission>,
        suspects: &mut VecDeque<Refused>,
        span: &mut Option<Span>,
    ) -> bool {
        let deadline = batch.iter().map(|submission| submission.deadline).max().expect("a batch is not empty");
        // After one unknown outcome a later refusal proves nothing: the first try may have been stored.
        let mut unknown = false;
        let was_sent = batch.iter().any(|submission| submission.is_unknown);
        loop {
            if let Some(open) = connection {
                let mut findings = Findings::default();
                let now = Instant::now();
                let limits = Limits {
                    until: now + ((deadline - now) / 2).min(LONGEST_SEARCH),
                    sent_before: unknown || was_sent,
                };
                let stored = bisect::store(&mut open.postgres, &batch, limits, &mut findings);
                match timeout_at(deadline, stored).await {
                    Ok(Ok(mut outcomes)) => {
                        let refusal = findings.conclude(suspects);
                        if let Some(reason) = &refusal {
                            fail(span, "refused", reason);
                            // Only writing is down; reading goes on.
                            self.health.dependency.down(reason);
                            bisect::take_back(&mut outcomes, reason);
                        } else if findings.answered {
                            self.health.up();
                        }
                        self.answer(batch, outcomes, unknown);
                        // A server that only refuses single orders stays connected: it may store the next one.
                        return findings.server.is_some();
                    }
                    // Dropped, not closed: closing would wait for a peer that does not answer.
                    Ok(Err(error)) => {
                        *connection = None;
                        tracing::debug!(%error, "sending a batch again");
                    }
                    Err(_) => {
                        *connection = None;
                        self.health.record(&ConnectionProblem::no_answer());
                    }
                }
                unknown = true;
                if defect("writer::sends-again-with-new-ids") {
                    for submission in &mut batch {
                        submission.order.id = Uuid::now_v7();
                    }
                }
            }
            if Instant::now() >= deadline {
                fail(span, "outcome_unknown", "the shard did not answer in time");
                let outcomes = batch.iter().map(|submission| Some(Err(outcome_unknown(submission)))).collect();
                self.answer(batch, outcomes, unknown);
                return false;
            }
            match timeout_at(deadline, self.connect()).await {
                Ok(Some(open)) => *connection = Some(open),
                _ => tokio::time::sleep_until(deadline.min(Instant::now() + Duration::from_millis(50))).await,
            }
        }
    }

    fn answer(&self, batch: Vec<Submission>, outcomes: Outcomes, unknown: bool) {
        self.doorbells.relay.notify_one();
        self.doorbells.receipts.notify_one();
        for (mut submission, outcome) in batch.into_iter().zip(outcomes) {
            submission.is_unknown |= unknown;
            let purged = || Err(PlaceError::NotAccepted("its Idempotency-Key is just being purged".to_owned()));
            let outcome = match outcome.unwrap_or_else(purged) {
                Err(PlaceError::Moved) => {
                    if !submission.is_unknown {
                        submission.ticket.give_back();
                    }
                    let moved = Moved { submission, refused_by: self.expected.shard_number() };
                    // At the end of the process nobody takes it: its request is answered as the reply is dropped.
                    let _ = self.moves.refused.send(moved);
                    continue;
                }
                Err(PlaceError::NotAccepted(_) | PlaceError::Refused(_)) if submission.is_unknown => {
                    Err(outcome_unknown(&submission))
                }
                outcome => outcome,
            };
            // This fails if the request has given up.
            let _ = submission.reply.send(outcome);
        }
    }
}

fn fail(span: &mut Option<Span>, kind: &'static str, reason: &str) {
    if let Some(span) = span {
        span.fail(kind, reason);
    }
}

/// Answers all requests before the commit: a defect for the proof.
fn answer_early(batch: &mut [Submission]) {
    for submission in batch {
        let unused = oneshot::channel().0;
        let created = Placed::Created(submission.order.clone(), submission.route.epoch);
        let _ = std::mem::replace(&mut submission.reply, unused).send(Ok(created));
    }
}

fn outcome_unknown(submission: &Submission) -> PlaceError {
    PlaceError::OutcomeUnknown(submission.order.id)
}
