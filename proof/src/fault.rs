//! The faults: what can happen to one part of the deployment, and how each begins and ends.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use hyper::StatusCode;
use orderflow_testbed::{Link, Service, Store, eventually};
use tokio::time::sleep;

use crate::{
    deployment::{Deployment, Part, Peer, SIDES, set_failpoint},
    history::{Clock, Time},
};

/// The longest to wait for a failpoint to be reached; after that it counts as not reached.
const REACHED: Duration = Duration::from_secs(25);

/// The longest to wait for a process to end before it is killed.
const GRACE: Duration = Duration::from_secs(25);

/// Longer than every lease, session, transaction and deadline of the product. The longest is the consumer's limit for
/// one step, 30 s.
const LONGER_THAN_EVERYTHING: Duration = Duration::from_secs(36);

/// The target of a fault, as far as it is known in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Victim {
    Producer,
    Consumer,
    /// The producer that leads the relay of some shard.
    RelayLeader,
    Shard,
    Kafka,
    S3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and a start after a moment.
    Kill(Victim),
    /// SIGTERM, and a start.
    Terminate(Victim),
    /// SIGSTOP, and SIGCONT after a while.
    Freeze(Victim, Length),
    /// A change of the network between one side, or both, and one peer.
    Network(Toward, Link),
    /// An error response of S3.
    Answering(StatusCode),
    DiskFull,
    /// The end of one of our processes at a named point of its code.
    Failpoint(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// A time shorter than most timeouts.
    Short,
    /// A time longer than all of them.
    Long,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toward {
    Shard,
    Kafka,
    S3,
}

/// Failpoints at which a process ends. A test checks that the list is complete.
pub const FAILPOINTS: [&str; 11] = [
    "writer::before-commit",
    "writer::after-commit",
    "relay::before-commit",
    "relay::after-commit",
    "relay::before-delete",
    "receipts::before-put",
    "receipts::before-delete",
    "consumer::after-produce",
    "consumer::before-commit",
    "consumer::after-commit",
    "consumer::in-rebalance",
];

const SLOW: Duration = Duration::from_millis(150);

/// Returns all faults in lanes: those of one lane happen one after the other, the lanes concurrently.
pub fn lanes(store: Store, disk: bool) -> [Vec<Fault>; 4] {
    use Fault::{Answering, DiskFull, Failpoint, Freeze, Kill, Network, Terminate};
    use Length::{Long, Short};
    use Victim::{Consumer, Kafka, Producer, RelayLeader, S3, Shard};

    let failpoints = |ours: bool| {
        let wanted = move |name: &&&str| name.starts_with("consumer") != ours;
        FAILPOINTS.iter().filter(wanted).map(|name| Failpoint(name)).collect::<Vec<_>>()
    };
    let producers = [
        Kill(Producer),
        Kill(RelayLeader),
        Terminate(Producer),
        Terminate(RelayLeader),
        Freeze(RelayLeader, Short),
        Freeze(RelayLeader, Long),
    ];
    let consumers = [Kill(Consumer), Terminate(Consumer), Freeze(Consumer, Short), Freeze(Consumer, Long)];
    let mut services = vec![
        Kill(Shard),
        Terminate(Shard),
        Freeze(Shard, Short),
        Freeze(Shard, Long),
        Kill(Kafka),
        Terminate(Kafka),
        Freeze(Kafka, Short),
        Freeze(Kafka, Long),
        Freeze(S3, Short),
        Freeze(S3, Long),
    ];
    if store == Store::Versitygw {
        services.extend([Kill(S3), Terminate(S3)]);
    }
    if disk {
        services.push(DiskFull);
    }
    let ways = [Link::Cut, Link::Slow(SLOW), Link::Swallowing, Link::SwallowingAnswers, Link::Stalled];
    let towards = [Toward::Shard, Toward::Kafka, Toward::S3];
    let mut network: Vec<_> =
        towards.iter().flat_map(|toward| ways.iter().map(|link| Network(*toward, *link))).collect();
    network.extend([Answering(StatusCode::INTERNAL_SERVER_ERROR), Answering(StatusCode::SERVICE_UNAVAILABLE)]);
    [[&producers[..], &failpoints(true)].concat(), [&consumers[..], &failpoints(false)].concat(), services, network]
}

impl Fault {
    /// Starts and ends the fault. Returns what was struck and when, once the part has recovered. Returns `None` if the
    /// fault had no opportunity.
    pub async fn strike(self, deployment: &Deployment, clock: Clock, rng: &mut Rng) -> Result<Option<(String, Time)>> {
        match self {
            Self::Kill(victim) => {
                let part = find(victim, deployment, rng).await;
                let _lock = deployment.lock(part).await;
                let from = clock.now();
                let service = deployment.service(part);
                service.kill();
                sleep(downtime(rng)).await;
                service.start_again().await?;
                Ok(Some((part.to_string(), from)))
            }
            Self::Terminate(victim) => {
                let part = find(victim, deployment, rng).await;
                let _lock = deployment.lock(part).await;
                let from = clock.now();
                restart(deployment.service(part)).await?;
                Ok(Some((part.to_string(), from)))
            }
            Self::Freeze(victim, length) => {
                let part = find(victim, deployment, rng).await;
                let _lock = deployment.lock(part).await;
                let from = clock.now();
                let service = deployment.service(part);
                service.pause();
                sleep(length.duration(rng)).await;
                service.resume();
                Ok(Some((part.to_string(), from)))
            }
            Self::Network(toward, link) => {
                let peer = toward.peer(rng);
                // Either one side alone is cut off, or both are.
                let sides = [vec![0], vec![1], vec![0, 1]][rng.usize(..3)].clone();
                let mut locks = Vec::new();
                for &side in &sides {
                    locks.push(deployment.lock(Part::Link(side, peer)).await);
                }
                let from = clock.now();
                let set = |link| sides.iter().for_each(|side| deployment.link(*side, peer).set(link));
                set(link);
                sleep(Duration::from_millis(rng.u64(4000..12_000))).await;
                set(Link::Open);
                let sides: Vec<_> = sides.iter().map(|side| SIDES[*side]).collect();
                Ok(Some((format!("{peer} ({})", sides.join(", ")), from)))
            }
            Self::Answering(status) => {
                let mut locks = Vec::new();
                for side in 0..SIDES.len() {
                    locks.push(deployment.lock(Part::Link(side, Peer::S3)).await);
                }
                let from = clock.now();
                for side in 0..SIDES.len() {
                    deployment.link(side, Peer::S3).set(Link::Answering(status));
                }
                sleep(Duration::from_millis(rng.u64(4000..10_000))).await;
                for side in 0..SIDES.len() {
                    deployment.link(side, Peer::S3).set(Link::Open);
                }
                Ok(Some((Part::S3.to_string(), from)))
            }
            Self::DiskFull => {
                let Some(disk) = &deployment.disk else { return Ok(None) };
                let part = Part::Shard(2);
                let _lock = deployment.lock(part).await;
                let from = clock.now();
                disk.fill()?;
                sleep(Duration::from_millis(rng.u64(5000..10_000))).await;
                disk.clear()?;
                let service = deployment.service(part);
                // A Postgres that cannot write its log ends.
                if !service.is_running() {
                    service.start_again().await?;
                }
                service.wait_until_up().await?;
                Ok(Some((part.to_string(), from)))
            }
            Self::Failpoint(name) => end_at(name, deployment, clock, rng).await,
        }
    }
}

/// Ends the process that reaches the failpoint first, and starts it again.
async fn end_at(
    name: &'static str,
    deployment: &Deployment,
    clock: Clock,
    rng: &mut Rng,
) -> Result<Option<(String, Time)>> {
    let victim = match name.split("::").next() {
        Some("relay") => Victim::RelayLeader,
        Some("consumer") => Victim::Consumer,
        _ => Victim::Producer,
    };
    let part = find(victim, deployment, rng).await;
    // Always locked in the same order, or two of these faults could wait for each other.
    let other = match part {
        Part::Consumer(side) if name == "consumer::in-rebalance" => Some(Part::Consumer(1 - side)),
        _ => None,
    };
    let mut parts = vec![part];
    parts.extend(other);
    parts.sort();
    let mut locks = Vec::new();
    for part in parts {
        locks.push(deployment.lock(part).await);
    }
    let service = deployment.service(part);
    let admin_url = match part {
        Part::Producer(side) => deployment.side(side).producer.admin_url()?,
        Part::Consumer(side) => deployment.side(side).consumer.admin_url()?,
        _ => bail!("{part} has no failpoints"),
    };
    let from = clock.now();
    set_failpoint(&admin_url, name, "return").await?;
    if let Some(other) = other {
        restart(deployment.service(other)).await?;
    }
    let reached = service.process().wait_for_exit(REACHED).await.is_ok();
    if reached {
        sleep(downtime(rng)).await;
        service.start_again().await?;
    } else {
        // Nothing reached the failpoint, because something it needs was down.
        set_failpoint(&admin_url, name, "off").await?;
    }
    Ok(reached.then(|| (part.to_string(), from)))
}

async fn restart(service: &dyn Service) -> Result<()> {
    // A Postgres ends at once by SIGINT, and waits for its clients by SIGTERM.
    let name = service.name().to_owned();
    if name.starts_with("postgres") {
        service.stop().await?;
    } else {
        service.process().terminate(GRACE).await.with_context(|| format!("terminate {name}"))?;
    }
    service.start_again().await
}

async fn find(victim: Victim, deployment: &Deployment, rng: &mut Rng) -> Part {
    match victim {
        Victim::Producer => Part::Producer(rng.usize(..SIDES.len())),
        Victim::Consumer => Part::Consumer(rng.usize(..SIDES.len())),
        Victim::RelayLeader => {
            let shard = rng.usize(1..=2);
            let leader = eventually("a relay to lead", REACHED, || deployment.relay_leader(shard)).await;
            Part::Producer(leader.unwrap_or_else(|_| rng.usize(..SIDES.len())))
        }
        Victim::Shard => Part::Shard(rng.usize(1..=2)),
        Victim::Kafka => Part::Kafka,
        Victim::S3 => Part::S3,
    }
}

/// Returns how long a part that died stays down.
fn downtime(rng: &mut Rng) -> Duration {
    Duration::from_millis(rng.u64(0..4000))
}

impl Length {
    fn duration(self, rng: &mut Rng) -> Duration {
        match self {
            Self::Short => Duration::from_millis(rng.u64(500..8000)),
            Self::Long => LONGER_THAN_EVERYTHING,
        }
    }
}

impl Toward {
    fn peer(self, rng: &mut Rng) -> Peer {
        match self {
            Self::Shard => Peer::Shard(rng.usize(1..=2)),
            Self::Kafka => Peer::Kafka,
            Self::S3 => Peer::S3,
        }
    }
}

/// Shows the kind of a fault, by which it is counted.
impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim) => write!(out, "kill -9: {victim}"),
            Self::Terminate(victim) => write!(out, "SIGTERM: {victim}"),
            Self::Freeze(victim, Length::Short) => write!(out, "freeze, short: {victim}"),
            Self::Freeze(victim, Length::Long) => write!(out, "freeze, long: {victim}"),
            Self::Network(toward, link) => {
                let how = match link {
                    Link::Open => "open",
                    Link::Slow(_) => "slow",
                    Link::Cut => "cut",
                    Link::Swallowing => "half-open",
                    Link::SwallowingAnswers => "answers lost",
                    Link::Stalled => "late",
                    Link::Answering(_) => "answered by the proxy",
                };
                let whom = match toward {
                    Toward::Shard => "a shard",
                    Toward::Kafka => "Kafka",
                    Toward::S3 => "S3",
                };
                write!(out, "network, {how}: {whom}")
            }
            Self::Answering(status) => write!(out, "answers {}: S3", status.as_u16()),
            Self::DiskFull => write!(out, "disk full: a shard"),
            Self::Failpoint(name) => write!(out, "ends at {name}"),
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Producer => "a producer",
            Self::Consumer => "a consumer",
            Self::RelayLeader => "a relay's leader",
            Self::Shard => "a shard",
            Self::Kafka => "Kafka",
            Self::S3 => "S3",
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Producer(side) => write!(out, "producer-{}", SIDES[*side]),
            Self::Consumer(side) => write!(out, "consumer-{}", SIDES[*side]),
            Self::Shard(shard) => write!(out, "shard{shard}"),
            Self::Kafka => write!(out, "Kafka"),
            Self::S3 => write!(out, "S3"),
            Self::Link(side, peer) => write!(out, "{}–{peer}", SIDES[*side]),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(shard) => write!(out, "shard{shard}"),
            Self::Kafka => write!(out, "Kafka"),
            Self::S3 => write!(out, "S3"),
        }
    }
}
