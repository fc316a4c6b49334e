//! The outcome of a reconcile: the errors of its steps, and the time of the next reconcile.

use std::time::Duration;

use crate::{condition::Class, kubernetes::explain};

/// The deadline of one reconcile. Its longest step is a migration, which has a deadline of its own.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// A request to the API server that failed. The variant is the step of the reconcile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the Secrets: {}", explain(.0))]
    Dereference(#[source] kube::Error),
    #[error("write the finalizer: {}", explain(.0))]
    Finalizer(#[source] kube::Error),
    #[error("remove the data of the resource: {}", explain(.0))]
    Delete(#[source] kube::Error),
    #[error("write the status: {}", explain(.0))]
    Status(#[source] kube::Error),
    #[error("not finished within {} s", DEADLINE.as_secs())]
    Deadline,
}

impl Error {
    /// Returns the name of the step, for a metric.
    pub fn step(&self) -> &'static str {
        match self {
            Self::Dereference(_) => "dereference",
            Self::Finalizer(_) => "finalizer",
            Self::Delete(_) => "delete",
            Self::Status(_) => "status",
            Self::Deadline => "deadline",
        }
    }
}

/// The time of the next reconcile, if nothing changes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    Never,
    /// The time of the next probe.
    Probe,
    /// The end of the backoff.
    Backoff,
    /// A fixed delay, for another reason than a failure.
    In(Duration),
}

/// Returns the delay that the most urgent of several problems needs.
pub fn requeue(classes: impl IntoIterator<Item = Class>) -> Requeue {
    let mut requeue = Requeue::Probe;
    for class in classes {
        match class {
            Class::Fine | Class::WaitForChange | Class::NeedsUser => {}
            Class::Transient => requeue = Requeue::Backoff,
            Class::Conflict => return Requeue::In(Duration::ZERO),
        }
    }
    requeue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_problem_decides_the_next_reconcile() {
        for (classes, expected) in [
            (&[][..], Requeue::Probe),
            (&[Class::Fine, Class::WaitForChange, Class::NeedsUser], Requeue::Probe),
            (&[Class::Transient, Class::NeedsUser], Requeue::Backoff),
            (&[Class::Transient, Class::Conflict], Requeue::In(Duration::ZERO)),
        ] {
            assert_eq!(requeue(classes.iter().copied()), expected, "{classes:?}");
        }
    }
}
