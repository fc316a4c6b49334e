//! The way to wait in a test: repeat a check until it succeeds or a deadline has passed.
//!
//! Promises that the error of a failed wait names the awaited result and the last one seen, and that one hanging
//! attempt cannot outlive the deadline. No test sleeps for a fixed time instead.

use std::{fmt::Debug, future::Future, time::Duration};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

/// The longest that a test waits for anything that must happen: enough on two busy cores, and no result depends on it.
pub const PATIENCE: Duration = Duration::from_mins(4);

/// Pause between two attempts: short compared with the awaited events, long compared with the cost of an attempt.
const INTERVAL: Duration = Duration::from_millis(20);

/// The possible results of one attempt of [`eventually`].
pub trait Attempt {
    type Value;

    /// Returns the value if the attempt succeeded, else the reason it did not.
    fn settle(self) -> std::result::Result<Self::Value, String>;
}

impl<T> Attempt for Option<T> {
    type Value = T;

    fn settle(self) -> std::result::Result<T, String> {
        self.ok_or_else(|| "nothing yet".to_owned())
    }
}

impl Attempt for bool {
    type Value = ();

    fn settle(self) -> std::result::Result<(), String> {
        self.then_some(()).ok_or_else(|| "not yet".to_owned())
    }
}

impl<T, E: Into<anyhow::Error>> Attempt for std::result::Result<T, E> {
    type Value = T;

    fn settle(self) -> std::result::Result<T, String> {
        self.map_err(|error| format!("{:#}", error.into()))
    }
}

/// Repeats `attempt` until it returns `Ok`, `Some` or `true`, and returns that value.
///
/// # Errors
/// If `deadline` has passed: `what` was awaited, and the last result that was seen instead.
pub async fn eventually<A, F>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> F) -> Result<A::Value>
where
    F: Future<Output = A>,
    A: Attempt,
{
    let end = Instant::now() + deadline;
    let mut seen = "no attempt ended".to_owned();
    loop {
        match timeout_at(end, attempt()).await {
            Ok(answer) => match answer.settle() {
                Ok(value) => return Ok(value),
                Err(reason) => seen = reason,
            },
            Err(_) => bail!("waited {deadline:?} for {what}; the last attempt hung, before it: {seen}"),
        }
        if Instant::now() + INTERVAL >= end {
            bail!("waited {deadline:?} for {what}; last seen: {seen}");
        }
        sleep(INTERVAL).await;
    }
}

/// Turns an observed value into an attempt: it succeeds once `accept` returns true; a timeout shows the last value.
pub fn accepted<T: Debug>(value: T, accept: impl FnOnce(&T) -> bool) -> Result<T> {
    if accept(&value) { Ok(value) } else { bail!("{value:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failed_wait_names_the_awaited_and_the_last_seen_result() {
        let error =
            eventually("the third order", Duration::from_secs(1), || async { accepted(2, |count| *count == 3) })
                .await
                .unwrap_err()
                .to_string();
        assert!(error.contains("the third order") && error.ends_with("last seen: 2"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_attempt_does_not_outlive_the_deadline() {
        let error = eventually("an answer", Duration::from_secs(1), std::future::pending::<bool>)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("hung"), "{error}");
    }
}
