//! What the operator remembers of a resource between two looks: how long to wait after a failure, what the outside world
//! answered last, and what was written last, since a watch tells of one's own write only later. All of it may be forgotten at
//! any time; then some things are looked at, and the children applied, once more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use orderflow_service::Backoff;

use super::provisioned::Provisioned;
use crate::crd::OrderFlowStatus;

/// The first delay after a failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Of one resource.
pub struct ResourceState {
    backoff: Backoff,
    /// When to try again after a failure.
    retry: Option<Instant>,
    pub probed: Option<Probed>,
    /// By kind and name.
    pub applied: HashMap<(&'static str, String), Applied>,
    pub status: Option<Written>,
    /// When this process first told the pods of a deleted resource to stop.
    pub stopping_since: Option<Instant>,
}

/// What databases, bucket and topics answered.
pub struct Probed {
    pub at: Instant,
    /// Of what was asked: another spec, Secret or annotation is another question.
    pub question: u64,
    pub answer: Provisioned,
}

/// A child as we applied it last.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Of what was wanted.
    pub wanted: u64,
    /// Of the fields that are ours since; see [`crate::cache::trim::fingerprint_of_ours`].
    pub ours: u64,
    pub version: Version,
}

/// The status as we wrote it last.
pub struct Written {
    pub version: Version,
    pub status: OrderFlowStatus,
}

/// A `resourceVersion`. Of one object, the greater is the newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u64);

/// Of all resources, by uid.
#[derive(Default)]
pub struct ResourceStates(Mutex<HashMap<String, Arc<tokio::sync::Mutex<ResourceState>>>>);

impl ResourceStates {
    /// The lock is never waited for: nobody looks at one resource twice at the same time.
    pub fn of(&self, uid: &str) -> Arc<tokio::sync::Mutex<ResourceState>> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(states.entry(uid.to_owned()).or_default())
    }

    /// Forgets all resources but those that still exist.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exists(uid));
    }
}

impl ResourceState {
    /// How long to wait after a failure. It becomes longer with each try that was waited for, and not with looks that
    /// something else caused in the meantime: during a rollout there may be dozens of those within seconds.
    pub fn retry_delay(&mut self) -> Duration {
        let now = Instant::now();
        let at = match self.retry {
            Some(at) if at > now => at,
            _ => now + self.backoff.next_delay(),
        };
        self.retry = Some(at);
        at - now
    }

    /// Resets the memory after a panic, which may have left it half written. Keeps the backoff, the time of the retry and
    /// the time since which pods are stopping.
    pub fn forget(&mut self) {
        let backoff = std::mem::replace(&mut self.backoff, Self::default().backoff);
        *self = Self { backoff, retry: self.retry, stopping_since: self.stopping_since, ..Self::default() };
    }

    pub fn nothing_failed(&mut self) {
        self.backoff.reset();
        self.retry = None;
    }
}

impl Default for ResourceState {
    fn default() -> Self {
        let (first, cap) = BACKOFF;
        Self {
            backoff: Backoff::new(first, cap),
            retry: None,
            probed: None,
            applied: HashMap::new(),
            status: None,
            stopping_since: None,
        }
    }
}

impl Version {
    /// Zero, older than all, if there is none or it is not a number.
    pub fn of(meta: &kube::api::ObjectMeta) -> Self {
        Self(meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_goes_from_a_second_to_five_minutes_and_starts_anew() {
        let mut backoff = ResourceState::default().backoff;
        let first = backoff.next_delay();
        assert!((Duration::from_secs(1)..=Duration::from_secs(2)).contains(&first), "{first:?}");
        let later = (0..20).map(|_| backoff.next_delay()).last().unwrap();
        assert!((Duration::from_secs(300)..=Duration::from_secs(600)).contains(&later), "{later:?}");
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_secs(2));
    }

    #[test]
    fn a_look_in_between_does_not_put_off_the_next_try() {
        let mut state = ResourceState::default();
        let delays: Vec<Duration> = (0..100).map(|_| state.retry_delay()).collect();
        assert!(delays[0] <= Duration::from_secs(2) && delays.is_sorted_by(|one, next| one >= next), "{delays:?}");
    }
}
