//! The dependencies of a process and their current states. The parts that use a dependency set its state; `/readyz`
//! reads it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// The effect of a dependency on readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The process is unready without it.
    Always,
    /// The process is ready with at least one dependency of this kind (a shard).
    AnyOf,
    /// The process serves without it and catches up later.
    Eventually,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum State {
    Up,
    /// The dependency is down, and the process waits for its return.
    Down {
        reason: String,
    },
    /// The dependency answers, but this process cannot use it (older schema, swapped DSN). A person has to fix it. The
    /// process is therefore unready, even if everything else is up, and a rollout stops.
    Unusable {
        reason: String,
    },
}

/// All dependencies of a process. Cheap to clone; clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Dependencies {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// A token that is cancelled when the process stops.
    stop: CancellationToken,
    states: BTreeMap<String, (Need, State)>,
}

/// A handle for the part that uses a dependency. Cheap to clone; clones share their state.
#[derive(Clone)]
pub struct Dependency {
    all: Dependencies,
    name: String,
}

/// The answer of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    pub ready: bool,
    /// The reasons why the process is unready.
    pub reasons: Vec<String>,
    pub dependencies: BTreeMap<String, State>,
}

impl Dependencies {
    /// Creates an empty set. The process is unready once `stop` is cancelled, so that it gets no new work.
    pub fn new(stop: CancellationToken) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { stop, ..Inner::default() })) }
    }

    /// Adds a dependency. It is down until its first check.
    pub fn register(&self, name: impl Into<String>, need: Need) -> Dependency {
        let name = name.into();
        let state = State::Down { reason: "not checked yet".to_owned() };
        self.lock().states.insert(name.clone(), (need, state));
        Dependency { all: self.clone(), name }
    }

    pub fn readiness(&self) -> Readiness {
        let inner = self.lock();
        let mut reasons = Vec::new();
        if inner.stop.is_cancelled() {
            reasons.push("stopping".to_owned());
        }
        let some_group = inner.states.values().any(|(need, _)| *need == Need::AnyOf);
        let some_up = inner.states.values().any(|(need, state)| *need == Need::AnyOf && *state == State::Up);
        for (name, (need, state)) in &inner.states {
            match (need, state) {
                (_, State::Unusable { reason }) | (Need::Always, State::Down { reason }) => {
                    reasons.push(format!("{name}: {reason}"));
                }
                (Need::AnyOf, State::Down { reason }) if some_group && !some_up => {
                    reasons.push(format!("{name}: {reason}"));
                }
                _ => {}
            }
        }
        let dependencies = inner.states.iter().map(|(name, (_, state))| (name.clone(), state.clone())).collect();
        Readiness { ready: reasons.is_empty(), reasons, dependencies }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dependency {
    pub fn up(&self) {
        self.set(State::Up);
    }

    /// Sets the state to down. `reason` must have no secret, because `/readyz` shows it.
    pub fn down(&self, reason: impl fmt::Display) {
        self.set(State::Down { reason: reason.to_string() });
    }

    /// Sets the state to unusable. `reason` must have no secret, because `/readyz` shows it.
    pub fn unusable(&self, reason: impl fmt::Display) {
        self.set(State::Unusable { reason: reason.to_string() });
    }

    /// Returns the reason why the dependency is not up. It has no secret.
    pub fn down_reason(&self) -> Option<String> {
        match &self.all.lock().states.get(&self.name)?.1 {
            State::Up => None,
            State::Down { reason } | State::Unusable { reason } => Some(reason.clone()),
        }
    }

    /// Sets the state. Logs only a change between up, down and unusable, not a new reason for the same outage.
    fn set(&self, state: State) {
        let mut inner = self.all.lock();
        let Some((_, current)) = inner.states.get_mut(&self.name) else { return };
        if std::mem::discriminant(current) != std::mem::discriminant(&state) {
            match &state {
                State::Up => tracing::info!(dependency = self.name, "up"),
                State::Down { reason } => tracing::warn!(dependency = self.name, reason, "down"),
                State::Unusable { reason } => tracing::error!(dependency = self.name, reason, "unusable"),
            }
        }
        *current = state;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_with_one_shard_and_unready_with_an_outdated_one() {
        let stop = CancellationToken::new();
        let all = Dependencies::new(stop.clone());
        let (one, two) = (all.register("shard1", Need::AnyOf), all.register("shard2", Need::AnyOf));
        let kafka = all.register("kafka", Need::Eventually);
        assert!(!all.readiness().ready);
        one.up();
        kafka.down("no broker");
        assert!(all.readiness().ready);
        two.unusable("schema version 1, needs 2");
        assert_eq!(all.readiness().reasons, ["shard2: schema version 1, needs 2"]);
        two.up();
        stop.cancel();
        assert_eq!(all.readiness().reasons, ["stopping"]);
    }
}
