//! Elects one leader among the operator's processes by a Lease that is only written with compare-and-swap. The Lease of
//! another process has expired when it did not change for its duration by OUR clock, so clocks need not agree. A leader
//! that cannot renew gives up after two thirds of the duration, before another can start.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use orderflow_service::Dependency;
use tokio::time::{Instant, error::Elapsed, sleep, timeout};

use crate::{
    kubernetes::{explain, is_conflict, is_gone},
    metrics::Pulse,
};

/// A process that wants the Lease.
pub struct Candidate {
    api: Api<Object>,
    name: String,
    identity: String,
    duration: Duration,
    pulse: Pulse,
    dependency: Dependency,
}

/// The last observed state of a Lease that another process holds.
struct Observed {
    record: (Option<String>, Option<MicroTime>, Option<String>),
    since: Instant,
}

/// The decision about a Lease.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ours,
    Free,
    /// Another process holds it; it is checked again.
    Taken,
}

impl Candidate {
    /// Creates a candidate. `dependency` is up while the API server answers requests for the Lease.
    pub fn new(
        api: Api<Object>,
        name: &str,
        identity: String,
        duration: Duration,
        pulse: Pulse,
        dependency: Dependency,
    ) -> Self {
        Self { api, name: name.to_owned(), identity, duration, pulse, dependency }
    }

    /// Waits until this process holds the Lease.
    pub async fn acquire(&self) {
        let mut observed: Option<Observed> = None;
        let mut reported = String::new();
        loop {
            self.pulse.beat();
            let answer = timeout(self.renew_deadline(), self.try_acquire(&mut observed)).await;
            self.record(&answer);
            match answer {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {
                    let holder = observed.as_ref().and_then(|observed| observed.record.0.clone()).unwrap_or_default();
                    if holder != reported {
                        tracing::info!(leader = holder, "waiting for the Lease");
                        reported = holder;
                    }
                }
                Ok(Err(error)) => self.warn_once(&mut reported, explain(&error)),
                Err(_) => self.warn_once(&mut reported, "no answer in time".to_owned()),
            }
            sleep(self.duration / 5).await;
        }
    }

    /// Takes the Lease, whichever process holds it. Returns the duration for which a previous holder may not notice;
    /// `None` if there was no holder.
    pub async fn seize(&self) -> Result<Option<Duration>, kube::Error> {
        loop {
            let lease = self.api.get_opt(&self.name).await?;
            let before = lease.as_ref().and_then(|lease| Some((holder(lease)?.clone(), duration(lease))));
            if self.write(lease.as_ref()).await? {
                return Ok(before.filter(|(holder, _)| *holder != self.identity).map(|(_, duration)| duration));
            }
        }
    }

    /// Logs each reason once.
    fn warn_once(&self, reported: &mut String, reason: String) {
        if *reported != reason {
            tracing::warn!(lease = self.name, reason, "cannot acquire the Lease");
            *reported = reason;
        }
    }

    /// Renews the Lease until that fails, and returns the reason: another process took it, or the renewals failed for
    /// too long. The leader must then end at once.
    pub async fn renew(&self) -> anyhow::Error {
        let mut renewed = Instant::now();
        let deadline = self.renew_deadline();
        loop {
            sleep(self.duration / 5).await;
            self.pulse.beat();
            let left = deadline.saturating_sub(renewed.elapsed());
            let began = Instant::now();
            let answer = timeout(left, self.renew_once()).await;
            self.record(&answer);
            match answer {
                Ok(Ok(true)) => renewed = began,
                Ok(Ok(false)) => return anyhow::anyhow!("the Lease {} was taken by another process", self.name),
                Ok(Err(_)) | Err(_) => {}
            }
            if renewed.elapsed() >= deadline {
                return anyhow::anyhow!("renew the Lease {}: no success for {} s", self.name, deadline.as_secs());
            }
        }
    }

    /// Releases the Lease, so that the next leader need not wait for its expiry. A failure is harmless.
    pub async fn release(&self) {
        let released = async {
            let Some(lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            if holder(&lease) == Some(&self.identity) {
                let spec = LeaseSpec { holder_identity: None, ..lease.spec.clone().unwrap_or_default() };
                self.replace(&lease, spec).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match timeout(Duration::from_secs(5), released).await {
            Ok(Ok(())) => tracing::info!("released the Lease"),
            Ok(Err(error)) => tracing::warn!(error = explain(&error), "cannot release the Lease"),
            Err(_) => tracing::warn!("cannot release the Lease: no answer in time"),
        }
    }

    /// Returns false if another process holds it.
    async fn try_acquire(&self, observed: &mut Option<Observed>) -> Result<bool, kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        match lease.as_ref().map_or(Verdict::Free, |lease| judge(lease, &self.identity, observed)) {
            Verdict::Taken => Ok(false),
            Verdict::Ours | Verdict::Free => self.write(lease.as_ref()).await,
        }
    }

    /// Writes this process into the Lease that was read, or into a new one. Returns false if another process was
    /// faster.
    async fn write(&self, lease: Option<&Object>) -> Result<bool, kube::Error> {
        let answer = match lease {
            Some(lease) => self.replace(lease, self.spec(lease.spec.as_ref())).await,
            None => {
                let lease = Object {
                    metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                    spec: Some(self.spec(None)),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
        };
        match answer {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns false if another process holds it.
    async fn renew_once(&self) -> Result<bool, kube::Error> {
        let lease = match self.api.get(&self.name).await {
            // It was deleted, so another process can create it at any moment.
            Err(error) if is_gone(&error) => return Ok(false),
            answer => answer?,
        };
        if holder(&lease) != Some(&self.identity) {
            return Ok(false);
        }
        // A conflict here means that another client wrote between our two requests. The next renewal finds out who
        // holds it.
        match self.replace(&lease, self.spec(lease.spec.as_ref())).await {
            Err(error) if !is_conflict(&error) => Err(error),
            _ => Ok(true),
        }
    }

    /// Replaces the version that was read. A write in between makes this a conflict.
    async fn replace(&self, lease: &Object, spec: LeaseSpec) -> Result<Object, kube::Error> {
        let lease = Object { metadata: lease.metadata.clone(), spec: Some(spec) };
        self.api.replace(&self.name, &PostParams::default(), &lease).await
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.duration.as_secs() as i32),
            acquire_time: ours.and_then(|spec| spec.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours.is_some() || before.is_none() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }

    fn record<T>(&self, answer: &Result<Result<T, kube::Error>, Elapsed>) {
        match answer {
            Ok(Ok(_)) => self.dependency.up(),
            Ok(Err(error)) => self.dependency.down(explain(error)),
            Err(_) => self.dependency.down("no answer in time"),
        }
    }

    /// Returns the longest time that a leader continues without a renewal.
    fn renew_deadline(&self) -> Duration {
        self.duration * 2 / 3
    }
}

/// Reads the Lease.
pub async fn leader(client: Client, namespace: &str, name: &str) -> anyhow::Result<Option<Object>> {
    let api: Api<Object> = Api::namespaced(client, namespace);
    api.get_opt(name).await.context("read the Lease")
}

pub fn holder(lease: &Object) -> Option<&String> {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref()).filter(|holder| !holder.is_empty())
}

fn judge(lease: &Object, identity: &str, observed: &mut Option<Observed>) -> Verdict {
    let Some(holder) = holder(lease) else { return Verdict::Free };
    if holder == identity {
        return Verdict::Ours;
    }
    let spec = lease.spec.clone().unwrap_or_default();
    let record = (Some(holder.clone()), spec.renew_time, lease.metadata.resource_version.clone());
    let seen = match observed {
        Some(seen) if seen.record == record => seen,
        _ => observed.insert(Observed { record, since: Instant::now() }),
    };
    if seen.since.elapsed() > duration(lease) { Verdict::Free } else { Verdict::Taken }
}

fn duration(lease: &Object) -> Duration {
    let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(15);
    Duration::from_secs(seconds.max(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, version: &str) -> Object {
        let spec = LeaseSpec {
            holder_identity: holder.map(ToOwned::to_owned),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        let metadata = ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() };
        Object { metadata, spec: Some(spec) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_expires_by_our_own_clock() {
        let mut observed = None;
        // The Lease, the seconds that pass before it is checked, and the verdict.
        for (lease, pass, verdict) in [
            (lease(None, "1"), 0, Verdict::Free),
            (lease(Some(""), "2"), 0, Verdict::Free),
            (lease(Some("us"), "3"), 0, Verdict::Ours),
            (lease(Some("other"), "4"), 0, Verdict::Taken),
            (lease(Some("other"), "4"), 14, Verdict::Taken),
            // Renewed, so its duration starts again.
            (lease(Some("other"), "5"), 10, Verdict::Taken),
            (lease(Some("other"), "5"), 14, Verdict::Taken),
            (lease(Some("other"), "5"), 2, Verdict::Free),
            // A third process was faster.
            (lease(Some("third"), "6"), 0, Verdict::Taken),
        ] {
            tokio::time::advance(Duration::from_secs(pass)).await;
            assert_eq!(judge(&lease, "us", &mut observed), verdict, "{lease:?}");
        }
    }
}
