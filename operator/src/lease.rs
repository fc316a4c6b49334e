//! One leader among the operator's processes, by a Lease that is only ever written with compare-and-swap. Another's Lease is
//! over when it has not changed for its duration by OUR clock, so that no two clocks have to agree. A leader that could not
//! renew stops being one before another can begin: it gives up after two thirds of the duration.

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

/// A wish for one Lease.
pub struct Candidate {
    api: Api<Object>,
    name: String,
    identity: String,
    duration: Duration,
    pulse: Pulse,
    dependency: Dependency,
}

/// What is known of another's Lease.
struct Watched {
    record: (Option<String>, Option<MicroTime>, Option<String>),
    since: Instant,
}

/// What may be done about a Lease as it is.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ours,
    Free,
    /// Another's, to be looked at again.
    Taken,
}

impl Candidate {
    /// `dependency`: that the API server answers about the Lease.
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

    /// Waits until the Lease is ours.
    pub async fn acquire(&self) {
        let mut watched: Option<Watched> = None;
        let mut said = String::new();
        loop {
            self.pulse.beat();
            let answer = timeout(self.patience(), self.try_acquire(&mut watched)).await;
            self.heard(&answer);
            match answer {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {
                    let holder = watched.as_ref().and_then(|watched| watched.record.0.clone()).unwrap_or_default();
                    if holder != said {
                        tracing::info!(leader = holder, "waiting for the Lease");
                        said = holder;
                    }
                }
                Ok(Err(error)) => self.say(&mut said, explain(&error)),
                Err(_) => self.say(&mut said, "no answer in time".to_owned()),
            }
            sleep(self.duration / 5).await;
        }
    }

    /// Takes the Lease from whoever has it, and says for how long that one may not know yet; `None` if nobody had it.
    pub async fn seize(&self) -> Result<Option<Duration>, kube::Error> {
        loop {
            let lease = self.api.get_opt(&self.name).await?;
            let before = lease.as_ref().and_then(|lease| Some((holder(lease)?.clone(), duration(lease))));
            if self.write(lease.as_ref()).await? {
                return Ok(before.filter(|(holder, _)| *holder != self.identity).map(|(_, duration)| duration));
            }
        }
    }

    /// Once for each reason.
    fn say(&self, said: &mut String, reason: String) {
        if *said != reason {
            tracing::warn!(lease = self.name, reason, "the Lease could not be had");
            *said = reason;
        }
    }

    /// Renews the Lease for as long as that works, and says why it no longer did: another wrote it, or it could not be
    /// renewed in time. Whoever led must then end at once.
    pub async fn renew(&self) -> anyhow::Error {
        let mut renewed = Instant::now();
        let patience = self.patience();
        loop {
            sleep(self.duration / 5).await;
            self.pulse.beat();
            let left = patience.saturating_sub(renewed.elapsed());
            let began = Instant::now();
            let answer = timeout(left, self.renew_once()).await;
            self.heard(&answer);
            match answer {
                Ok(Ok(true)) => renewed = began,
                Ok(Ok(false)) => return anyhow::anyhow!("the Lease {} was taken by another process", self.name),
                Ok(Err(_)) | Err(_) => {}
            }
            if renewed.elapsed() >= patience {
                return anyhow::anyhow!("the Lease {} could not be renewed for {} s", self.name, patience.as_secs());
            }
        }
    }

    /// Gives the Lease back, so that another need not wait for its end. Nothing depends on it.
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
            Ok(Ok(())) => tracing::info!("the Lease was given back"),
            Ok(Err(error)) => tracing::warn!(error = explain(&error), "the Lease could not be given back"),
            Err(_) => tracing::warn!("the Lease could not be given back: no answer in time"),
        }
    }

    /// False if it is another's.
    async fn try_acquire(&self, watched: &mut Option<Watched>) -> Result<bool, kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        match lease.as_ref().map_or(Verdict::Free, |lease| judge(lease, &self.identity, watched)) {
            Verdict::Taken => Ok(false),
            Verdict::Ours | Verdict::Free => self.write(lease.as_ref()).await,
        }
    }

    /// Makes the Lease ours, as it was read or new; false if another was faster.
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

    /// False if it is another's.
    async fn renew_once(&self) -> Result<bool, kube::Error> {
        let lease = match self.api.get(&self.name).await {
            // Somebody removed it; another may have it in an instant.
            Err(error) if is_gone(&error) => return Ok(false),
            answer => answer?,
        };
        if holder(&lease) != Some(&self.identity) {
            return Ok(false);
        }
        // A conflict here means that another wrote between our two requests: the next look tells who has it.
        match self.replace(&lease, self.spec(lease.spec.as_ref())).await {
            Err(error) if !is_conflict(&error) => Err(error),
            _ => Ok(true),
        }
    }

    /// With the version that was read: if anybody wrote since, this is a conflict.
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

    fn heard<T>(&self, answer: &Result<Result<T, kube::Error>, Elapsed>) {
        match answer {
            Ok(Ok(_)) => self.dependency.up(),
            Ok(Err(error)) => self.dependency.down(explain(error)),
            Err(_) => self.dependency.down("no answer in time"),
        }
    }

    /// How long a leader goes without a renewal.
    fn patience(&self) -> Duration {
        self.duration * 2 / 3
    }
}

/// Who has the Lease, for whoever only asks.
pub async fn leader(client: Client, namespace: &str, name: &str) -> anyhow::Result<Option<Object>> {
    let api: Api<Object> = Api::namespaced(client, namespace);
    api.get_opt(name).await.context("read the Lease")
}

pub fn holder(lease: &Object) -> Option<&String> {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref()).filter(|holder| !holder.is_empty())
}

fn judge(lease: &Object, identity: &str, watched: &mut Option<Watched>) -> Verdict {
    let Some(holder) = holder(lease) else { return Verdict::Free };
    if holder == identity {
        return Verdict::Ours;
    }
    let spec = lease.spec.clone().unwrap_or_default();
    let record = (Some(holder.clone()), spec.renew_time, lease.metadata.resource_version.clone());
    let seen = match watched {
        Some(seen) if seen.record == record => seen,
        _ => watched.insert(Watched { record, since: Instant::now() }),
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
    async fn a_lease_is_judged_by_what_our_own_clock_saw() {
        let mut watched = None;
        // What the Lease is, seconds that pass before it is looked at, and what may be done.
        for (lease, pass, verdict) in [
            (lease(None, "1"), 0, Verdict::Free),
            (lease(Some(""), "2"), 0, Verdict::Free),
            (lease(Some("us"), "3"), 0, Verdict::Ours),
            (lease(Some("other"), "4"), 0, Verdict::Taken),
            (lease(Some("other"), "4"), 14, Verdict::Taken),
            // Renewed: it lasts from now.
            (lease(Some("other"), "5"), 10, Verdict::Taken),
            (lease(Some("other"), "5"), 14, Verdict::Taken),
            (lease(Some("other"), "5"), 2, Verdict::Free),
            // A third one was faster.
            (lease(Some("third"), "6"), 0, Verdict::Taken),
        ] {
            tokio::time::advance(Duration::from_secs(pass)).await;
            assert_eq!(judge(&lease, "us", &mut watched), verdict, "{lease:?}");
        }
    }
}
