//! The operator's memory of a resource between two reconciles: the backoff, the last results of the probes, and its own
//! last writes, which a watch reports only later. It may be lost at any time; then parts are checked, and children
//! applied, once more.

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

/// The state of one resource.
pub struct ResourceState {
    backoff: Backoff,
    /// The time of the next attempt after a failure.
    retry: Option<Instant>,
    pub probed: Option<Probed>,
    /// The last applied children, by kind and name.
    pub applied: HashMap<(&'static str, String), Applied>,
    pub status: Option<Written>,
    /// The removal of the deleted resource's data, from this process's first attempt on.
    pub removal: Option<Removal>,
}

/// The time at which this process began to remove the data of a deleted resource.
#[derive(Clone, Copy, Debug)]
pub struct Removal {
    pub began: Instant,
    /// No earlier process has tried.
    pub is_first: bool,
}

/// The result of the last probe of databases, bucket and topics.
pub struct Probed {
    pub at: Instant,
    /// A hash of the spec, the Secrets and the annotations. If one changes, the result is out of date.
    pub inputs: u64,
    pub result: Provisioned,
}

/// A child as we applied it last.
#[derive(Clone, Debug)]
pub struct Applied {
    /// A hash of the wanted child.
    pub wanted: u64,
    /// A hash of the fields that we set; see [`crate::cache::trim::fingerprint_of_ours`].
    pub ours: u64,
    pub version: Version,
}

/// The status as we wrote it last.
pub struct Written {
    pub version: Version,
    pub status: OrderFlowStatus,
}

/// A `resourceVersion`. Of two versions of an object, the greater is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u64);

/// The states of all resources, by uid.
#[derive(Default)]
pub struct ResourceStates(Mutex<HashMap<String, Arc<tokio::sync::Mutex<ResourceState>>>>);

impl ResourceStates {
    /// Returns the state of a resource. Its lock is never contended, because a resource is never reconciled
    /// concurrently.
    pub fn get_or_create(&self, uid: &str) -> Arc<tokio::sync::Mutex<ResourceState>> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(states.entry(uid.to_owned()).or_default())
    }

    /// Forgets all resources that no longer exist.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exists(uid));
    }
}

impl ResourceState {
    /// Returns the delay after a failure. It grows with each attempt that was waited for, but not with reconciles that
    /// changes cause in between: a rollout causes dozens within seconds.
    pub fn retry_delay(&mut self) -> Duration {
        let now = Instant::now();
        let at = match self.retry {
            Some(at) if at > now => at,
            _ => now + self.backoff.next_delay(),
        };
        self.retry = Some(at);
        at - now
    }

    /// Resets the memory after a panic, which may have left it half written. Keeps the backoff, the time of the
    /// retry and the removal.
    pub fn forget(&mut self) {
        let backoff = std::mem::replace(&mut self.backoff, Self::default().backoff);
        *self = Self { backoff, retry: self.retry, removal: self.removal, ..Self::default() };
    }

    pub fn record_success(&mut self) {
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
            removal: None,
        }
    }
}

impl Version {
    /// Reads the version. One that is missing or not a number becomes zero, which is older than all.
    pub fn from_meta(meta: &kube::api::ObjectMeta) -> Self {
        Self(meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_grows_from_a_second_to_five_minutes_and_can_be_reset() {
        let mut backoff = ResourceState::default().backoff;
        let first = backoff.next_delay();
        assert!((Duration::from_secs(1)..=Duration::from_secs(2)).contains(&first), "{first:?}");
        let later = (0..20).map(|_| backoff.next_delay()).last().unwrap();
        assert!((Duration::from_secs(300)..=Duration::from_secs(600)).contains(&later), "{later:?}");
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_secs(2));
    }

    #[test]
    fn a_reconcile_in_between_does_not_postpone_the_retry() {
        let mut state = ResourceState::default();
        let delays: Vec<Duration> = (0..100).map(|_| state.retry_delay()).collect();
        assert!(delays[0] <= Duration::from_secs(2) && delays.is_sorted_by(|one, next| one >= next), "{delays:?}");
    }
}
