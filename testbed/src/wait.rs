//! The one way to wait in a test: ask again until the answer is there or the deadline has passed.
//!
//! Promises that a wait which fails says what was awaited and what was seen last, and that one hanging attempt cannot
//! outlive the deadline. Nobody in this workspace sleeps for a fixed time instead.

use std::{fmt::Debug, future::Future, time::Duration};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

/// The longest a test waits for anything that must happen: long enough for two busy cores, and nothing depends on it.
pub const PATIENCE: Duration = Duration::from_mins(4);

/// Pause between two attempts: short against everything that is awaited, long against the cost of asking.
const INTERVAL: Duration = Duration::from_millis(20);

/// What one attempt of [`eventually`] may answer with.
pub trait Attempt {
    type Value;

    /// The value if it is there, else why not.
    fn settle(self) -> std::result::Result<Self::Value, String>;
}

impl<T> Attempt for Option<T> {
    type Value = T;

    fn settle(self) -> std::result::Result<T, String> {
        self.ok_or_else(|| "not there yet".to_owned())
    }
}

impl Attempt for bool {
    type Value = ();

    fn settle(self) -> std::result::Result<(), String> {
        self.then_some(()).ok_or_else(|| "not so yet".to_owned())
    }
}

impl<T, E: Into<anyhow::Error>> Attempt for std::result::Result<T, E> {
    type Value = T;

    fn settle(self) -> std::result::Result<T, String> {
        self.map_err(|error| format!("{:#}", error.into()))
    }
}

/// Repeats `attempt` until it answers with `Ok`, `Some` or `true`, and returns that value.
///
/// # Errors
/// Once `deadline` has passed: `what` was awaited, and the last thing that was seen instead.
pub async fn eventually<A, F>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> F) -> Result<A::Value>
where
    F: Future<Output = A>,
    A: Attempt,
{
    let end = Instant::now() + deadline;
    let mut seen = "no attempt was answered".to_owned();
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

/// Turns an observed value into an attempt: it counts once `accept` says so, and is shown when it never does.
pub fn accepted<T: Debug>(value: T, accept: impl FnOnce(&T) -> bool) -> Result<T> {
    if accept(&value) { Ok(value) } else { bail!("{value:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_fails_names_what_was_awaited_and_what_was_seen() {
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
