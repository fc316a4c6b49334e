//! A writer owns one connection. It takes what is queued, stores it with one statement, answers every waiting request, and
//! repeats. No timer: while one commit syncs, the next batch gathers by itself.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    time::Duration,
};

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
    Doorbells, Health, PlaceError, Placed, Presence, Trouble, durability,
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

/// Time on one connection after which an error of the server is a new one.
const SERVED_WELL: Duration = Duration::from_secs(5);

/// Longest search for the orders that the database refuses in a batch, in which every other order waits for its answer. What is
/// undecided then gets `not-accepted`.
const LONGEST_SEARCH: Duration = Duration::from_secs(1);

/// Statements for one batch, retries not counted: finding one refused order among 512 takes 10 to 19.
const MOST_STATEMENTS: usize = 512;

/// Age at which a refused order is no evidence against the server any more.
const LONGEST_SUSPICION: Duration = Duration::from_secs(10);

/// Users whose orders were refused alike, after which the server is the reason.
const MANY_USERS: usize = 8;

/// Told to clients; the server's own words go to `/readyz` and the log.
const NO_ORDERS: &str = "the shard takes no orders";

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
                    // The next connection may find a better server. That it is there does not make the shard up: only what it stores.
                    Served::Refused => {
                        refused = true;
                        // One that served for long is no further failure of the last one.
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

    /// A connection to a database that is the right one, or the trouble noted in the health.
    async fn connect(&self) -> Option<Connection> {
        let opened = async {
            let mut postgres =
                postgres::connect(&self.options).await.map_err(|error| Trouble::Down(format!("{error:#}")))?;
            self.ask(&mut postgres).await?;
            let shard = self.expected.shard_name();
            let required = durability::require(&mut postgres, shard, &self.metrics.unsafe_settings);
            match timeout(ASK_TIMEOUT, required).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(Trouble::Down(format!("require synchronous_commit: {error}"))),
                Err(_) => return Err(Trouble::no_answer()),
            }
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
    async fn serve(&self, connection: Connection, suspects: &mut VecDeque<Refused>) -> Served {
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
                    let refused = self.store_and_answer(&mut connection, batch, suspects).await;
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
        suspects: &mut VecDeque<Refused>,
    ) -> bool {
        let deadline = batch.iter().map(|submission| submission.deadline).max().expect("a batch is not empty");
        // After one unknown outcome a later refusal proves nothing: the first try may have been stored.
        let mut unknown = false;
        loop {
            if let Some(open) = connection {
                let mut findings = Findings::default();
                let now = Instant::now();
                let limits = Limits { until: now + ((deadline - now) / 2).min(LONGEST_SEARCH), sent_before: unknown };
                let stored = self.store_bisecting(&mut open.postgres, &batch, limits, &mut findings);
                match timeout_at(deadline, stored).await {
                    Ok(Ok(mut outcomes)) => {
                        let refusal = findings.conclude(suspects);
                        if let Some(reason) = &refusal {
                            // Reading goes on.
                            self.health.dependency.down(reason);
                            take_back(&mut outcomes, reason);
                        } else if findings.answered {
                            self.health.up();
                        }
                        self.answer(batch, outcomes, unknown);
                        // One that refuses orders and says nothing of itself stays connected: the next order may do.
                        return findings.server.is_some();
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

    /// Stores a batch. A part in which the database refuses something that a row can cause is halved, until only that order is
    /// left out. Then the orders of other users come first, before more of a user whose order was refused. `Err`:
    /// the outcome of the batch is unknown.
    async fn store_bisecting(
        &self,
        connection: &mut PgConnection,
        batch: &[Submission],
        limits: Limits,
        findings: &mut Findings,
    ) -> Result<Outcomes, sqlx::Error> {
        let mut outcomes: Outcomes = vec![None; batch.len()];
        let mut parts = VecDeque::from([(0..batch.len()).collect::<Vec<_>>()]);
        let (mut refused_users, mut statements) = (HashSet::new(), 0);
        while let Some(mut part) = parts.pop_front() {
            statements += 1;
            let none_stored = |reason: &str| vec![Some(Err(PlaceError::NotAccepted(reason.to_owned()))); part.len()];
            let stored = if findings.server.is_some() {
                none_stored(NO_ORDERS)
            } else if statements > MOST_STATEMENTS || (statements > 1 && Instant::now() >= limits.until) {
                none_stored("the shard is busy with orders that its database refuses")
            } else {
                let orders: Vec<&Submission> = part.iter().map(|position| &batch[*position]).collect();
                match self.store_part(connection, &orders, limits.sent_before).await? {
                    Ok(stored) => {
                        findings.answered = true;
                        stored
                    }
                    Err((Refusal::Server, error)) => {
                        findings.server = Some(no_orders(&error));
                        none_stored(NO_ORDERS)
                    }
                    Err((Refusal::Statement, error)) if part.len() == 1 => {
                        tracing::error!(order_id = %orders[0].order.id, %error, "the database refuses an order");
                        findings.refused.push(Refused::of(orders[0], &error));
                        if refused_users.insert(&orders[0].order.user_id) {
                            let mut pending: Vec<usize> = parts.drain(..).flatten().collect();
                            pending.sort_unstable();
                            let is_theirs = |position: &usize| refused_users.contains(&batch[*position].order.user_id);
                            let (theirs, others): (Vec<_>, Vec<_>) = pending.into_iter().partition(is_theirs);
                            parts.extend([others, theirs].into_iter().filter(|part| !part.is_empty()));
                        }
                        vec![Some(Err(PlaceError::Refused(error.to_string())))]
                    }
                    Err((Refusal::Statement, _)) => {
                        let second = part.split_off(part.len() / 2);
                        parts.push_front(second);
                        parts.push_front(part);
                        continue;
                    }
                    Err((_, error)) => {
                        tracing::warn!(%error, orders = part.len(), "the database does not store a part of a batch");
                        none_stored("the shard could not store the order")
                    }
                }
            };
            for (position, outcome) in part.into_iter().zip(stored) {
                outcomes[position] = outcome;
            }
        }
        Ok(outcomes)
    }

    /// Stores some orders with one statement, and retries a collision. The inner `Err`: none of them is stored.
    async fn store_part(
        &self,
        connection: &mut PgConnection,
        part: &[&Submission],
        sent_before: bool,
    ) -> Result<Result<Outcomes, (Refusal, sqlx::Error)>, sqlx::Error> {
        fail::fail_point!("writer::before-commit", |_| std::process::abort());
        let (mut tries, mut committed) = (0, false);
        loop {
            tries += 1;
            let StoreError { refusal, error } = match statement::store(connection, part, sent_before || tries > 1).await
            {
                Ok(outcomes) if outcomes.iter().any(Option::is_none) && tries < 3 => {
                    committed = true;
                    continue;
                }
                Ok(outcomes) => {
                    fail::fail_point!("writer::after-commit", |_| std::process::abort());
                    return Ok(Ok(outcomes));
                }
                Err(error) => error,
            };
            match refusal {
                Some(Refusal::Collision) if tries < 5 => {}
                // After a try that has committed, an error says nothing about what is stored.
                Some(refusal) if !committed => return Ok(Err((refusal, error))),
                _ => return Err(error),
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

/// Limits of storing one batch.
#[derive(Clone, Copy)]
struct Limits {
    /// The end of the search for refused orders.
    until: Instant,
    /// True if an earlier try may have stored some of it.
    sent_before: bool,
}

/// Findings about the server from storing a batch.
#[derive(Default)]
struct Findings {
    /// The server ran the statement of at least one order.
    answered: bool,
    /// The reason, if the server takes no orders at all.
    server: Option<String>,
    /// Orders that were refused alone.
    refused: Vec<Refused>,
}

/// An order that the server refused, alone in its statement.
#[derive(Clone)]
struct Refused {
    sqlstate: String,
    user_id: UserId,
    product_name: ProductName,
    reason: String,
    at: Instant,
}

impl Refused {
    fn of(submission: &Submission, error: &sqlx::Error) -> Self {
        let order = &submission.order;
        Self {
            sqlstate: postgres::sqlstate(error).unwrap_or_default(),
            user_id: order.user_id.clone(),
            product_name: order.product_name.clone(),
            reason: no_orders(&error),
            at: Instant::now(),
        }
    }

    /// Returns whether both were refused for one reason, and for one that may be the server's. A value or a constraint (classes
    /// 22 and 23) is a row's.
    fn is_alike(&self, other: &Self) -> bool {
        let is_row = self.sqlstate.starts_with("22") || self.sqlstate.starts_with("23");
        !is_row && (&self.sqlstate, &self.reason) == (&other.sqlstate, &other.reason)
    }

    fn shares_nothing_with(&self, other: &Self) -> bool {
        self.user_id != other.user_id && self.product_name != other.product_name
    }
}

impl Findings {
    /// Returns why the server takes no orders, if it takes none: it says so, or it stored nothing and refused, one by one and
    /// alike, two orders that share neither user nor product, or orders of many users. `suspects` are the orders that it
    /// refused since it stored one.
    fn conclude(&mut self, suspects: &mut VecDeque<Refused>) -> Option<String> {
        if self.server.is_some() {
            return self.server.clone();
        }
        if self.answered {
            suspects.clear();
            return None;
        }
        suspects.retain(|suspect| suspect.at.elapsed() < LONGEST_SUSPICION);
        suspects.extend(self.refused.drain(..));
        suspects.drain(..suspects.len().saturating_sub(2 * MANY_USERS));
        let is_of_server = |one: &Refused| {
            let alike: Vec<&Refused> = suspects.iter().filter(|other| one.is_alike(other)).collect();
            let users: HashSet<&str> = alike.iter().map(|refused| refused.user_id.as_str()).collect();
            users.len() >= MANY_USERS || alike.iter().any(|other| one.shares_nothing_with(other))
        };
        suspects.iter().rev().find(|one| is_of_server(one)).map(|one| one.reason.clone())
    }
}

/// Tells the clients of orders that were thought to be the reason that they may send them again: the server was the reason.
fn take_back(outcomes: &mut Outcomes, reason: &str) {
    for outcome in outcomes {
        if let Some(Err(error @ PlaceError::Refused(_))) = outcome
            && matches!(error, PlaceError::Refused(refusal) if no_orders(refusal) == reason)
        {
            *error = PlaceError::NotAccepted(NO_ORDERS.to_owned());
        }
    }
}

fn no_orders(error: &dyn fmt::Display) -> String {
    format!("{NO_ORDERS}: {error}")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(sqlstate: &str, user: &str, product: &str) -> Refused {
        Refused {
            sqlstate: sqlstate.to_owned(),
            user_id: UserId::parse(user).unwrap(),
            product_name: ProductName::parse(product).unwrap(),
            reason: format!("{sqlstate}: no"),
            at: Instant::now(),
        }
    }

    /// Concludes after each of these orders was refused alone, one after the other.
    fn conclude(orders: impl IntoIterator<Item = Refused>) -> Option<String> {
        let mut suspects = VecDeque::new();
        let conclusions = orders
            .into_iter()
            .map(|order| Findings { refused: vec![order], ..Findings::default() }.conclude(&mut suspects));
        conclusions.last().flatten()
    }

    #[test]
    fn two_orders_that_share_nothing_accuse_the_server_if_they_are_refused_alike() {
        let all = [refused("42501", "alice", "Lamp"), refused("42501", "bob", "Chair")];
        assert_eq!(conclude(all), Some("42501: no".to_owned()));
        // The last one was refused for itself.
        let all =
            [refused("42501", "alice", "Lamp"), refused("42501", "bob", "Chair"), refused("23514", "carol", "Bed")];
        assert_eq!(conclude(all), Some("42501: no".to_owned()));
        for all in [
            [refused("42501", "alice", "Lamp"), refused("42501", "alice", "Chair")],
            [refused("42501", "alice", "Lamp"), refused("42501", "bob", "Lamp")],
            [refused("42501", "alice", "Lamp"), refused("P0001", "bob", "Chair")],
            [refused("23514", "alice", "Lamp"), refused("23514", "bob", "Chair")],
            [refused("22001", "alice", "Lamp"), refused("22001", "bob", "Chair")],
        ] {
            assert_eq!(conclude(all), None);
        }
    }

    #[test]
    fn orders_of_many_users_accuse_the_server_even_of_one_product() {
        let orders = |count: usize| (0..count).map(|number| refused("42501", &format!("user-{number}"), "Lamp"));
        assert_eq!(conclude(orders(MANY_USERS - 1)), None);
        assert!(conclude(orders(MANY_USERS)).is_some());
    }

    #[test]
    fn an_order_that_the_server_ran_clears_it() {
        let mut suspects = VecDeque::from([refused("42501", "alice", "Lamp")]);
        assert_eq!(Findings { answered: true, ..Findings::default() }.conclude(&mut suspects), None);
        assert!(suspects.is_empty());
    }

    #[test]
    fn only_what_was_refused_alike_is_taken_back() {
        let refusal = |text: &str| Some(Err(PlaceError::Refused(text.to_owned())));
        let mut outcomes = vec![refusal("denied"), refusal("too large")];
        take_back(&mut outcomes, &no_orders(&"denied"));
        assert!(matches!(&outcomes[0], Some(Err(PlaceError::NotAccepted(_)))), "{outcomes:?}");
        assert!(matches!(&outcomes[1], Some(Err(PlaceError::Refused(_)))), "{outcomes:?}");
    }
}
