//! Finds the orders of a batch that the database refuses, and stores the others: a refused part is halved until each
//! refused order is alone. Several such refusals show whether the orders or the server are the reason.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fmt,
    time::Duration,
};

use orderflow_core::{ProductName, RangeId, UserId};
use orderflow_service::postgres::{self, Refusal};
use sqlx::PgConnection;
use tokio::time::Instant;

use super::{
    PlaceError,
    queue::Submission,
    statement::{self, Outcomes, StoreError},
};

/// Longest search for the refused orders of a batch, for which all its other orders wait. Orders that are undecided
/// then get `not-accepted`.
pub const LONGEST_SEARCH: Duration = Duration::from_secs(1);

/// Statements for one batch, retries not counted: finding one refused order among 512 takes 10 to 19.
const MOST_STATEMENTS: usize = 512;

/// Age at which a refused order is no longer evidence against the server.
const LONGEST_SUSPICION: Duration = Duration::from_secs(10);

/// Number of users with the same refusal from which on the server is the reason.
const MANY_USERS: usize = 8;

/// The detail that clients get; the server's own message goes to `/readyz` and the log.
const NO_ORDERS: &str = "the shard takes no orders";

/// Stores a batch. A part with a refusal that a row can cause is halved, until only that order is left out. Then orders
/// of other users come before further orders of the user whose order was refused. `Err`: the outcome of the batch is
/// unknown.
pub async fn store(
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
            match store_part(connection, &orders, limits.sent_before).await? {
                Ok(Some(stored)) => {
                    findings.answered = true;
                    stored
                }
                // The database may store some ranges of the part and not others.
                Ok(None) => match by_range(&part, batch) {
                    of_ranges if of_ranges.len() > 1 => {
                        of_ranges.into_iter().rev().for_each(|of_range| parts.push_front(of_range));
                        continue;
                    }
                    _ => {
                        findings.answered = true;
                        vec![Some(Err(PlaceError::Moved)); part.len()]
                    }
                },
                Err((Refusal::Server, error)) => {
                    findings.server = Some(no_orders(&error));
                    none_stored(NO_ORDERS)
                }
                Err((Refusal::Statement, error)) if part.len() == 1 => {
                    tracing::error!(order_id = %orders[0].order.id, %error, "the database refuses an order");
                    findings.refused.push(Refused::new(orders[0], &error));
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
                    tracing::warn!(%error, orders = part.len(), "the database did not store a part of a batch");
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
    connection: &mut PgConnection,
    part: &[&Submission],
    sent_before: bool,
) -> Result<Result<Option<Outcomes>, (Refusal, sqlx::Error)>, sqlx::Error> {
    fail::fail_point!("writer::before-commit", |_| std::process::abort());
    let (mut tries, mut committed) = (0, false);
    loop {
        tries += 1;
        let StoreError { refusal, error } = match statement::store(connection, part, sent_before || tries > 1).await {
            Ok(Some(outcomes)) if outcomes.iter().any(Option::is_none) && tries < 3 => {
                committed = true;
                continue;
            }
            // A try that has committed may have stored some of them.
            Ok(None) if committed => return Err(sqlx::Error::Protocol("its users have moved meanwhile".to_owned())),
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

/// Divides a part of a batch by the ranges of the orders' users. The order within a range stays.
fn by_range(part: &[usize], batch: &[Submission]) -> Vec<Vec<usize>> {
    let mut ranges: BTreeMap<RangeId, Vec<usize>> = BTreeMap::new();
    for position in part {
        ranges.entry(batch[*position].route.range).or_default().push(*position);
    }
    ranges.into_values().collect()
}

/// Limits of storing one batch.
#[derive(Clone, Copy)]
pub struct Limits {
    /// The end of the search for refused orders.
    pub until: Instant,
    /// True if an earlier try may have stored some of it.
    pub sent_before: bool,
}

/// Findings about the server from storing a batch.
#[derive(Default)]
pub struct Findings {
    /// The server ran the statement of at least one order.
    pub answered: bool,
    /// The reason, if the server takes no orders at all.
    pub server: Option<String>,
    /// The orders that were refused alone.
    refused: Vec<Refused>,
}

/// An order that the server refused, alone in its statement.
#[derive(Clone)]
pub struct Refused {
    sqlstate: String,
    user_id: UserId,
    product_name: ProductName,
    reason: String,
    at: Instant,
}

impl Refused {
    fn new(submission: &Submission, error: &sqlx::Error) -> Self {
        let order = &submission.order;
        Self {
            sqlstate: postgres::sqlstate(error).unwrap_or_default(),
            user_id: order.user_id.clone(),
            product_name: order.product_name.clone(),
            reason: no_orders(&error),
            at: Instant::now(),
        }
    }

    /// Returns true if both were refused for the same reason, which may be the server's. A value or a constraint
    /// (classes 22 and 23) is a row's.
    fn is_alike(&self, other: &Self) -> bool {
        let is_row = self.sqlstate.starts_with("22") || self.sqlstate.starts_with("23");
        !is_row && (&self.sqlstate, &self.reason) == (&other.sqlstate, &other.reason)
    }

    fn shares_nothing_with(&self, other: &Self) -> bool {
        self.user_id != other.user_id && self.product_name != other.product_name
    }
}

impl Findings {
    /// Returns the reason if the server takes no orders. It takes none if it reports that itself, or if it stored
    /// nothing and refused, one by one and for the same reason, two orders that share neither user nor product, or
    /// orders of many users. `suspects` are the orders that it has refused since it stored one.
    pub fn conclude(&mut self, suspects: &mut VecDeque<Refused>) -> Option<String> {
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

/// Turns the refusals of orders that were taken for the reason into `not-accepted`, so that clients may send them
/// again: the server was the reason.
pub fn take_back(outcomes: &mut Outcomes, reason: &str) {
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
    fn the_same_refusal_of_two_orders_that_share_nothing_accuses_the_server() {
        let all = [refused("42501", "alice", "Lamp"), refused("42501", "bob", "Chair")];
        assert_eq!(conclude(all), Some("42501: no".to_owned()));
        // The last one was refused for a reason of its own.
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
    fn the_same_refusal_of_many_users_accuses_the_server_even_for_one_product() {
        let orders = |count: usize| (0..count).map(|number| refused("42501", &format!("user-{number}"), "Lamp"));
        assert_eq!(conclude(orders(MANY_USERS - 1)), None);
        assert!(conclude(orders(MANY_USERS)).is_some());
    }

    #[test]
    fn an_executed_order_clears_the_server() {
        let mut suspects = VecDeque::from([refused("42501", "alice", "Lamp")]);
        assert_eq!(Findings { answered: true, ..Findings::default() }.conclude(&mut suspects), None);
        assert!(suspects.is_empty());
    }

    #[test]
    fn only_refusals_for_the_reason_of_the_server_are_taken_back() {
        let refusal = |text: &str| Some(Err(PlaceError::Refused(text.to_owned())));
        let mut outcomes = vec![refusal("denied"), refusal("too large")];
        take_back(&mut outcomes, &no_orders(&"denied"));
        assert!(matches!(&outcomes[0], Some(Err(PlaceError::NotAccepted(_)))), "{outcomes:?}");
        assert!(matches!(&outcomes[1], Some(Err(PlaceError::Refused(_)))), "{outcomes:?}");
    }
}
