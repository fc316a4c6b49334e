//! The four topics. Missing ones are created. Existing ones are never changed, because only their owner knows what else
//! depends on them: a difference is reported, and an unusable topic is an error. Several runs may create them at once.
//!
//! The relay topic records the owner of the topics and which of them an OrderFlow created ([`owner`]). Only those are
//! removed again.

mod cluster;
mod error;
mod group;
mod note;
mod owner;
mod plan;

use std::{fmt, time::Duration};

use futures_util::future::join_all;
use orderflow_core::Topics;
use rdkafka::ClientConfig;

use crate::Adopt;
use cluster::Cluster;
pub use error::Error;
pub use group::belongs_to;
pub use note::Keeping;
use owner::Ledger;
use plan::{Plan, Shape};

/// The minimum retention of events, notifications and dead letters: 30 days, so that consumers can stop for a holiday
/// and a repair.
pub const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The name of the brokers' version among the differences.
pub const VERSION: &str = "the version of Kafka";

/// A setting that brokers have from version 4.3 on. None of their answers contains the version itself.
const SETTING_OF_4_3: &str = "cordoned.log.dirs";

/// The wanted topics.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub topics: Topics,
    /// The number of partitions of `orders` and its notifications.
    pub partitions: i32,
    /// The number of shards. Each has one partition of the relays' progress records.
    pub shards: i32,
    /// The replication factor. Default: the broker's own.
    pub replication_factor: Option<i32>,
    pub retention: Duration,
    /// The OrderFlow, `<namespace>/<name>`.
    pub owner: String,
    /// The owner whose topics may be taken over.
    pub adopt: Adopt<'a>,
}

/// The result of [`ensure`] or [`check`].
#[derive(Debug)]
pub struct Found {
    /// The id of the Kafka cluster, which does not depend on the names of its brokers.
    pub cluster: Option<String>,
    /// The result of each topic, in the order of [`Topics`]' fields.
    pub topics: Vec<Topic>,
    /// The guarantees that the brokers lack, though the topics work.
    pub notes: Vec<String>,
}

/// A topic and its result.
#[derive(Debug)]
pub struct Topic<T = Outcome> {
    pub name: String,
    pub outcome: Result<T, Error>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created { partitions: i32, differences: Vec<Difference>, keeping: Option<Keeping> },
    Exists { partitions: i32, differences: Vec<Difference>, keeping: Option<Keeping> },
}

/// The result of the removal of a topic or consumer group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// The topic or group did not exist.
    Missing,
    /// No record shows that an OrderFlow created it: it existed before, or an earlier version created it.
    Kept,
}

/// A property of a topic or of its brokers that differs from the wanted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub topic: String,
    /// The property: `partitions`, `replication.factor`, the name of a setting, or [`VERSION`].
    pub what: &'static str,
    pub found: String,
    /// The expected value. A number is a minimum where more does no harm.
    pub expected: String,
}

/// A topic as it is created, for the documents.
#[derive(Clone, Debug)]
pub struct Planned {
    pub name: String,
    pub partitions: i32,
    pub settings: Vec<PlannedSetting>,
}

#[derive(Clone, Debug)]
pub struct PlannedSetting {
    pub name: &'static str,
    pub value: String,
    /// Says whether an existing topic may have a larger value.
    pub is_minimum: bool,
}

/// Returns how each topic is created, in the order of [`Topics`]' fields.
pub fn planned(wanted: &Wanted<'_>) -> Vec<Planned> {
    let plans = std::iter::once(Plan::orders(wanted)).chain(Plan::others(wanted, wanted.partitions));
    plans.chain([Plan::relay(wanted)]).map(Planned::from).collect()
}

/// Claims the topics for the owner, creates the missing ones and waits until every partition has a leader. Returns an
/// error, and writes nothing, if Kafka is unavailable or the topics belong to another owner.
pub async fn ensure(config: &ClientConfig, wanted: &Wanted<'_>) -> Result<Found, Error> {
    run_all(&Cluster::connect(config)?, wanted, Mode::Ensure).await
}

/// Checks that the topics exist, belong to the owner and are as wanted. Reads only. Returns the errors of [`ensure`].
pub async fn check(config: &ClientConfig, wanted: &Wanted<'_>) -> Result<Found, Error> {
    run_all(&Cluster::connect(config)?, wanted, Mode::Check).await
}

/// Deletes the topics that an OrderFlow created, with all their records, and waits until they are gone. The relay topic
/// goes last, because it records which those are. Returns one result per topic, in the order of [`Topics`]' fields, or
/// an error if Kafka is unavailable or the topics belong to another owner.
pub async fn remove(config: &ClientConfig, topics: &Topics, owner: &str) -> Result<Vec<Topic<Removal>>, Error> {
    let cluster = Cluster::connect(config)?;
    let ledger = ledger(&cluster, &topics.relay).await?;
    let ownership = match &ledger {
        Some(ledger) => ledger.read().await?,
        None => owner::Ownership::default(),
    };
    if let Some(found) = ownership.owner().filter(|found| *found != owner) {
        return Err(Error::OwnedByAnother { owner: found.to_owned() });
    }
    let remove = async |name: &str| {
        let created = ownership.owner().is_some() && ownership.created(name);
        let outcome = remove_one(&cluster, name, created).await;
        Topic { name: name.to_owned(), outcome }
    };
    let mut removed =
        join_all([&topics.orders, &topics.notifications, &topics.dead_letters].map(|name| remove(name))).await;
    if removed.iter().all(|topic| topic.outcome.is_ok()) {
        let mut relay = remove(&topics.relay).await;
        if let (Ok(Removal::Kept), Some(ledger)) = (&relay.outcome, &ledger) {
            relay.outcome = ledger.release(&ownership).await.map(|()| Removal::Kept);
        }
        removed.push(relay);
    }
    Ok(removed)
}

/// Returns whether [`remove`] would keep the events' topic. The consumer group must then stay as well: the next group
/// of its name would start at the oldest event and notify every user again.
pub async fn keeps_events(config: &ClientConfig, topics: &Topics, owner: &str) -> Result<bool, Error> {
    let cluster = Cluster::connect(config)?;
    if cluster.fetch(&topics.orders).await?.is_none() {
        return Ok(false);
    }
    let ownership = match ledger(&cluster, &topics.relay).await? {
        Some(ledger) => ledger.read().await?,
        None => owner::Ownership::default(),
    };
    Ok(ownership.owner() != Some(owner) || !ownership.created(&topics.orders))
}

/// Deletes a consumer group with its offsets. A group with members is kept and causes a transient error, because they
/// may be about to leave. The caller must know that the group belongs to the owner: [`belongs_to`].
pub async fn remove_group(config: &ClientConfig, group: &str) -> Result<Removal, Error> {
    let deleted = Cluster::connect(config)?.delete_group(group).await?;
    Ok(if deleted { Removal::Removed } else { Removal::Missing })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Ensure,
    Check,
}

/// Handles all topics. The relay topic comes first and alone: it records the owner, and if Kafka is unavailable, there
/// is only one timeout. The events' topic follows, because the notifications need as many partitions as it really has.
async fn run_all(cluster: &Cluster, wanted: &Wanted<'_>, mode: Mode) -> Result<Found, Error> {
    let (relay, ledger) = relay(cluster, wanted, mode).await?;
    let relay = Topic { name: wanted.topics.relay.clone(), outcome: relay };
    // Without an owner nothing is created.
    let mode = if ledger.is_some() { mode } else { Mode::Check };

    let plan = Plan::orders(wanted);
    let outcome = run_one(cluster, &plan, mode).await;
    let mut orders = Topic { name: plan.name, outcome };
    let brokers = cluster.brokers(&orders.name).await;
    if let Ok(Outcome::Created { differences, .. } | Outcome::Exists { differences, .. }) = &mut orders.outcome
        && brokers.iter().any(|settings| settings.contains_key(SETTING_OF_4_3))
    {
        differences.push(Difference::version(&orders.name));
    }
    let partitions = orders.outcome.as_ref().map_or(wanted.partitions, Outcome::partitions);
    let others = Plan::others(wanted, partitions).map(|plan| async move {
        let outcome = run_one(cluster, &plan, mode).await;
        Topic { name: plan.name, outcome }
    });
    let others = join_all(others).await;
    let topics: Vec<Topic> = std::iter::once(orders).chain(others).chain([relay]).collect();
    if let Some(ledger) = &ledger {
        // A topic that is created but not recorded, because this run ends here, is never removed.
        let created = topics.iter().filter(|topic| matches!(topic.outcome, Ok(Outcome::Created { .. })));
        ledger.record_created(created.map(|topic| topic.name.as_str())).await?;
    }
    let existing = topics.iter().filter_map(|topic| match &topic.outcome {
        Ok(Outcome::Created { keeping, .. } | Outcome::Exists { keeping, .. }) => {
            Some((topic.name.as_str(), (*keeping)?))
        }
        Err(_) => None,
    });
    let notes = note::notes(&wanted.topics.orders, &existing.collect(), &brokers);
    Ok(Found { cluster: cluster.id().await, topics, notes })
}

/// Handles the relay topic. Returns its result and, if the topics belong to the owner, the ledger. Returns an error if
/// they belong to another owner or Kafka is unavailable.
async fn relay<'a>(
    cluster: &'a Cluster,
    wanted: &'a Wanted<'_>,
    mode: Mode,
) -> Result<(Result<Outcome, Error>, Option<Ledger<'a>>), Error> {
    let plan = Plan::relay(wanted);
    let adopt = if mode == Mode::Ensure { wanted.adopt } else { Adopt::Nothing };
    // Read before anything is written.
    let existing = ledger(cluster, &wanted.topics.relay).await?;
    if let Some(ledger) = &existing {
        match ledger.read().await?.owner() {
            Some(owner) if owner != wanted.owner && !adopt.allows(owner) => {
                return Err(Error::OwnedByAnother { owner: owner.to_owned() });
            }
            None if mode == Mode::Check => return Ok((Err(Error::Unclaimed), None)),
            _ => {}
        }
    }
    let mut outcome = match run_one(cluster, &plan, mode).await {
        Err(error) if error.is_about_the_brokers() => return Err(error),
        outcome => outcome,
    };
    let Ok(Outcome::Created { partitions, .. } | Outcome::Exists { partitions, .. }) = &mut outcome else {
        return Ok((outcome, None));
    };
    if mode == Mode::Check {
        return Ok((outcome, existing));
    }
    if *partitions < plan.partitions {
        // An earlier version created it.
        cluster.add_partitions(&plan.name, plan.partitions).await?;
        *partitions = cluster.wait_until_led(&plan.name, plan.partitions).await?.partitions;
    }
    let ledger = Ledger { cluster, relay: &wanted.topics.relay, partition: *partitions - 1 };
    match ledger.claim(&wanted.owner, adopt).await {
        Ok(()) => Ok((outcome, Some(ledger))),
        Err(error @ Error::OwnedByAnother { .. }) => Err(error),
        Err(error) => Ok((Err(error), None)),
    }
}

/// Returns the ledger, or `None` if the relay topic does not exist.
async fn ledger<'a>(cluster: &'a Cluster, relay: &'a str) -> Result<Option<Ledger<'a>>, Error> {
    let shape = cluster.fetch(relay).await?;
    Ok(shape.map(|shape| Ledger { cluster, relay, partition: shape.partitions - 1 }))
}

async fn run_one(cluster: &Cluster, plan: &Plan, mode: Mode) -> Result<Outcome, Error> {
    match mode {
        Mode::Ensure => ensure_one(cluster, plan).await,
        Mode::Check => check_one(cluster, plan).await,
    }
}

async fn ensure_one(cluster: &Cluster, plan: &Plan) -> Result<Outcome, Error> {
    let created = match cluster.fetch(&plan.name).await? {
        Some(_) => false,
        None => cluster.create(plan).await?,
    };
    let least = if created { plan.partitions } else { 1 };
    let shape = cluster.wait_until_led(&plan.name, least).await?;
    if created {
        // A broker may not know the new topic yet; an error here does not undo its creation.
        let keeping = cluster.settings(&plan.name).await.ok().map(|found| Keeping::new(shape.replicas, &found));
        return Ok(Outcome::Created { partitions: shape.partitions, differences: Vec::new(), keeping });
    }
    judge(cluster, plan, &shape).await
}

async fn check_one(cluster: &Cluster, plan: &Plan) -> Result<Outcome, Error> {
    let shape = cluster.fetch(&plan.name).await?.ok_or(Error::Missing)?;
    let outcome = judge(cluster, plan, &shape).await?;
    if shape.led { Ok(outcome) } else { Err(Error::NoLeader) }
}

async fn judge(cluster: &Cluster, plan: &Plan, shape: &Shape) -> Result<Outcome, Error> {
    let settings = cluster.settings(&plan.name).await?;
    let keeping = Some(Keeping::new(shape.replicas, &settings));
    Ok(Outcome::Exists { partitions: shape.partitions, differences: plan.judge(shape, &settings)?, keeping })
}

async fn remove_one(cluster: &Cluster, name: &str, created: bool) -> Result<Removal, Error> {
    if cluster.fetch(name).await?.is_none() {
        return Ok(Removal::Missing);
    }
    if !created {
        return Ok(Removal::Kept);
    }
    if !cluster.delete(name).await? {
        return Ok(Removal::Missing);
    }
    cluster.wait_until_gone(name).await?;
    Ok(Removal::Removed)
}

impl Outcome {
    pub fn partitions(&self) -> i32 {
        match self {
            Self::Created { partitions, .. } | Self::Exists { partitions, .. } => *partitions,
        }
    }

    pub fn differences(&self) -> &[Difference] {
        match self {
            Self::Created { differences, .. } | Self::Exists { differences, .. } => differences,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, partitions) = match self {
            Self::Created { partitions, .. } => ("created", partitions),
            Self::Exists { partitions, .. } => ("exists", partitions),
        };
        let plural = if *partitions == 1 { "" } else { "s" };
        write!(f, "{word}, {partitions} partition{plural}")?;
        self.differences().iter().try_for_each(|difference| write!(f, "; {difference}"))
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "removed",
            Self::Missing => "does not exist",
            Self::Kept => "kept, because no record shows that an OrderFlow created it",
        })
    }
}

impl Difference {
    /// Reports brokers that can lose the ends of transactions; see docs/guarantees.md.
    fn version(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            what: VERSION,
            found: "4.3 or later".to_owned(),
            expected: "4.0 to 4.2, because 4.3.0 to 4.4.0 lose ends of transactions when brokers restart (KAFKA-20734)"
                .to_owned(),
        }
    }
}

/// Omits the topic, which the reader knows.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, expected {}", self.what, self.found, self.expected)
    }
}
