//! A writer owns one connection. It takes what is queued, stores it with one statement, answers every waiting request, and
//! repeats. No timer: while one commit syncs, the next batch gathers by itself.

use std::time::Duration;

use orderflow_core::{ProductName, UserId};
use orderflow_service::{
    Backoff,
    failpoint::defect,
    postgres::{self, Refusal},
    shutdown::CancellationToken,
};
use sqlx::{PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};
use uuid::Uuid;

use super::{
    Doorbells, Health, PlaceError, Placed, Presence, Trouble,
    meta::{Expected, MetaError},
    queue::{Submission, Submissions},
    statement::{self, Outcomes, StoreError},
};
use crate::metrics::ShardMetrics;

/// Orders in one statement. More would only make the first of them wait longer.
const BATCH: usize = 512;

/// Longest silence on an idle connection before the database is asked whether it is still the one that it was.
const IDLE: Duration = Duration::from_secs(2);

/// Longest wait for an answer of the database that no order waits for.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub struct Writer {
    options: PgConnectOptions,
    expected: Expected,
    submissions: Submissions,
    health: Health,
    doorbells: Doorbells,
    metrics: ShardMetrics,
}

/// What came out of the queue.
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

/// Why a connection is not served any more.
enum Served {
    QueueClosed,
    ConnectionLost,
    /// The server answers, and stores nothing: read-only after a failover, disk full.
    Refused,
}

impl Writer {
    pub(super) fn new(
        options: PgConnectOptions,
        expected: Expected,
        submissions: Submissions,
        health: Health,
        doorbells: Doorbells,
        metrics: ShardMetrics,
    ) -> Self {
        Self { options, expected, submissions, health, doorbells, metrics }
    }

    /// Runs until the queue is closed and empty, or, while the database is gone, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let (mut refused, mut suspect) = (false, None);
        loop {
            if let Some(connection) = self.connect().await {
                if !refused {
                    self.health.up();
                }
                match self.serve(connection, &mut suspect).await {
                    Served::QueueClosed => return,
                    Served::ConnectionLost => {
                        refused = false;
                        backoff.reset();
                        continue;
                    }
                    // The next connection may find a better server. That it is there does not make the shard up: only what it stores.
                    Served::Refused => refused = true,
                }
            }
            tokio::select! {
                () = backoff.wait() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// A connection to a database that is the right one, or the trouble noted in the health.
    async fn connect(&self) -> Option<Connection> {
        let opened = async {
            let mut postgres =
                postgres::connect(&self.options).await.map_err(|error| Trouble::Down(format!("{error:#}")))?;
            self.ask(&mut postgres).await?;
            Ok(Connection { postgres, _presence: self.health.present() })
        };
        opened.await.inspect_err(|trouble| self.health.report(trouble)).ok()
    }

    /// Is it (still) the database that it should be, and does it answer?
    async fn ask(&self, postgres: &mut PgConnection) -> Result<(), Trouble> {
        match timeout(ASK_TIMEOUT, self.expected.check(postgres)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(MetaError::Unusable(reason))) => Err(Trouble::Unusable(reason)),
            Ok(Err(MetaError::Database(error))) => Err(Trouble::Down(format!("read orderflow_meta: {error}"))),
            Err(_) => Err(Trouble::no_answer()),
        }
    }

    /// Stores batches until there will be none, or the connection is of no more use.
    async fn serve(&self, connection: Connection, suspect: &mut Option<Refused>) -> Served {
        let mut connection = Some(connection);
        loop {
            let Some(open) = &mut connection else { return Served::ConnectionLost };
            match self.gather().await {
                Gathered::Closed => return Served::QueueClosed,
                Gathered::Nothing => match self.ask(&mut open.postgres).await {
                    Ok(()) => self.health.up(),
                    Err(trouble) => {
                        connection = None;
                        self.health.report(&trouble);
                    }
                },
                Gathered::Batch(mut batch) => {
                    self.metrics.batch_size.observe(batch.len() as f64);
                    let started = Instant::now();
                    statement::sort(&mut batch);
                    if defect("writer::answers-before-commit") {
                        answer_early(&mut batch);
                    }
                    let refused = self.store_and_answer(&mut connection, batch, suspect).await;
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
        let received = timeout(IDLE, async { self.submissions.lock().await.recv_many(&mut batch, BATCH).await }).await;
        match received {
            Err(_) => Gathered::Nothing,
            Ok(0) => Gathered::Closed,
            Ok(_) => {
                batch.retain(|submission| submission.ticket.take());
                if batch.is_empty() { Gathered::Nothing } else { Gathered::Batch(batch) }
            }
        }
    }

    /// Answers every submission. A batch whose outcome is unknown is sent again over a new connection, with the same ids,
    /// until its requests have given up. Leaves `None` behind if the last connection is of no more use; true if the server
    /// refuses everything.
    async fn store_and_answer(
        &self,
        connection: &mut Option<Connection>,
        mut batch: Vec<Submission>,
        suspect: &mut Option<Refused>,
    ) -> bool {
        let deadline = batch.iter().map(|submission| submission.deadline).max().expect("a batch is not empty");
        // After one unknown outcome a later refusal proves nothing: the first try may have been stored.
        let mut unknown = false;
        loop {
            if let Some(open) = connection {
                let mut findings = Findings::default();
                match timeout_at(deadline, self.store_bisecting(&mut open.postgres, &batch, &mut findings)).await {
                    Ok(Ok(mut outcomes)) => {
                        let refusal = findings.conclude(suspect);
                        if let Some(reason) = &refusal {
                            // Reading goes on.
                            self.health.dependency.down(reason);
                            take_back(&mut outcomes, reason);
                        } else if findings.answered {
                            self.health.up();
                        }
                        self.answer(batch, outcomes, unknown);
                        return refusal.is_some();
                    }
                    // Dropped, not closed: a peer that does not answer does not answer a goodbye either.
                    Ok(Err(error)) => {
                        *connection = None;
                        tracing::debug!(%error, "a batch is sent again");
                    }
                    Err(_) => {
                        *connection = None;
                        self.health.report(&Trouble::no_answer());
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

    /// Stores a batch. If the database refuses it with an error that a row may have caused, the batch is halved until only
    /// the refused order is left out. `Err` is an unknown outcome.
    async fn store_bisecting(
        &self,
        connection: &mut PgConnection,
        batch: &[Submission],
        findings: &mut Findings,
    ) -> Result<Outcomes, sqlx::Error> {
        fail::fail_point!("writer::before-commit", |_| std::process::abort());
        let (mut tries, mut committed) = (0, false);
        loop {
            tries += 1;
            let StoreError { refusal, error } = match statement::store(connection, batch).await {
                Ok(outcomes) if outcomes.iter().any(Option::is_none) && tries < 3 => {
                    committed = true;
                    continue;
                }
                Ok(outcomes) => {
                    fail::fail_point!("writer::after-commit", |_| std::process::abort());
                    findings.answered = true;
                    return Ok(outcomes);
                }
                Err(error) => error,
            };
            let none_stored = |error: PlaceError| Ok(vec![Some(Err(error)); batch.len()]);
            match refusal {
                Some(Refusal::Collision | Refusal::StalePlan) if tries < 5 => {}
                // What it refuses now, it has stored in part before.
                _ if committed => return Err(error),
                Some(Refusal::Collision | Refusal::StalePlan) => {
                    return none_stored(PlaceError::NotAccepted(error.to_string()));
                }
                Some(Refusal::Server) => {
                    findings.server = Some(error.to_string());
                    return none_stored(PlaceError::NotAccepted(no_orders(&error)));
                }
                Some(Refusal::Statement) if batch.len() == 1 => {
                    tracing::error!(order_id = %batch[0].order.id, %error, "the database refuses an order");
                    let refused = none_stored(PlaceError::Refused(error.to_string()));
                    findings.refused.push(Refused::of(&batch[0], &error));
                    return refused;
                }
                Some(Refusal::Statement) => {
                    let (first, second) = batch.split_at(batch.len() / 2);
                    let mut outcomes = Box::pin(self.store_bisecting(connection, first, findings)).await?;
                    outcomes.extend(Box::pin(self.store_bisecting(connection, second, findings)).await?);
                    return Ok(outcomes);
                }
                Some(Refusal::Connection) | None => return Err(error),
            }
        }
    }

    fn answer(&self, batch: Vec<Submission>, outcomes: Outcomes, unknown: bool) {
        self.doorbells.relay.notify_one();
        self.doorbells.receipts.notify_one();
        for (submission, outcome) in batch.into_iter().zip(outcomes) {
            let purged = || Err(PlaceError::NotAccepted("its Idempotency-Key is just being purged".to_owned()));
            let outcome = match outcome.unwrap_or_else(purged) {
                Err(PlaceError::NotAccepted(_) | PlaceError::Refused(_)) if unknown => {
                    Err(outcome_unknown(&submission))
                }
                outcome => outcome,
            };
            // Nobody is there to read it if the request has given up.
            let _ = submission.reply.send(outcome);
        }
    }
}

/// Findings about the server from storing a batch.
#[derive(Default)]
struct Findings {
    /// The server ran the statement of at least one order.
    answered: bool,
    /// The reason, if the server takes no orders at all.
    server: Option<String>,
    /// Orders that were refused alone, in the order of the batch.
    refused: Vec<Refused>,
}

/// An order that the server refused, alone in its statement.
#[derive(Clone)]
struct Refused {
    sqlstate: Option<String>,
    user_id: UserId,
    product_name: ProductName,
    reason: String,
}

impl Refused {
    fn of(submission: &Submission, error: &sqlx::Error) -> Self {
        let order = &submission.order;
        Self {
            sqlstate: postgres::sqlstate(error),
            user_id: order.user_id.clone(),
            product_name: order.product_name.clone(),
            reason: no_orders(error),
        }
    }

    /// Returns true if both orders were refused with the same SQLSTATE and share neither user nor product. Then the server
    /// is the likely cause, not the orders.
    fn accuses_server_with(&self, other: &Self) -> bool {
        self.sqlstate == other.sqlstate && self.user_id != other.user_id && self.product_name != other.product_name
    }
}

impl Findings {
    /// Returns the reason if the server takes no orders: it reports so, or it ran no order and refused orders alike that
    /// have nothing in common. `suspect` is the order that was refused last while nothing else was stored.
    fn conclude(&self, suspect: &mut Option<Refused>) -> Option<String> {
        if self.server.is_some() {
            return self.server.clone();
        }
        if self.answered {
            *suspect = None;
            return None;
        }
        let accused =
            |one: &Refused| self.refused.iter().chain(suspect.as_ref()).any(|other| one.accuses_server_with(other));
        let reason = self.refused.iter().find(|one| accused(one)).map(|one| one.reason.clone());
        *suspect = self.refused.last().cloned().or(suspect.take());
        reason
    }
}

/// Turns refused orders into orders that were not accepted: the server was the cause, so clients may send them again.
fn take_back(outcomes: &mut Outcomes, reason: &str) {
    for outcome in outcomes {
        if let Some(Err(error @ PlaceError::Refused(_))) = outcome {
            *error = PlaceError::NotAccepted(reason.to_owned());
        }
    }
}

fn no_orders(error: &sqlx::Error) -> String {
    format!("the shard takes no orders: {error}")
}

/// A defect for the proof: whoever waits is told what has not happened yet.
fn answer_early(batch: &mut [Submission]) {
    for submission in batch {
        let nobody = oneshot::channel().0;
        let created = Placed::Created(submission.order.clone());
        let _ = std::mem::replace(&mut submission.reply, nobody).send(Ok(created));
    }
}

fn outcome_unknown(submission: &Submission) -> PlaceError {
    PlaceError::OutcomeUnknown(submission.order.id)
}
