//! The four topics. Missing ones are made; those that exist are never changed, because nobody but their owner knows what
//! else depends on them: what differs is said, and what cannot work is an error. Several runs may make them at once.
//!
//! The relay topic says whose the topics are and which of them we created ([`owner`]). Only those are removed again.

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
use cluster::{Cluster, Shape};
pub use error::Error;
pub use group::belongs_to;
pub use note::Keeping;
use owner::Ledger;
use plan::Plan;

/// How long events, notifications and dead letters are kept at least: 30 days, so that a consumer may stand still for a
/// holiday and its repair.
pub const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What the brokers' version is called among the differences.
pub const VERSION: &str = "the version of Kafka";

/// A setting that brokers have from version 4.3 on. No answer of theirs names the version itself.
const SETTING_OF_4_3: &str = "cordoned.log.dirs";

/// What the topics should be.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub topics: Topics,
    /// Of `orders` and its notifications.
    pub partitions: i32,
    /// Each has one partition of the relays' progress records.
    pub shards: i32,
    /// None: the broker's default.
    pub replication_factor: Option<i32>,
    pub retention: Duration,
    /// `<namespace>/<name>` of the OrderFlow.
    pub owner: String,
    /// Whose topics may be taken over.
    pub adopt: Adopt<'a>,
}

/// What was found of the topics and done with them.
#[derive(Debug)]
pub struct Found {
    /// The id of the Kafka cluster, by whichever names its brokers were reached.
    pub cluster: Option<String>,
    /// One answer per topic, in the order of [`Topics`]' fields.
    pub topics: Vec<Topic>,
    /// What the brokers cannot promise, though the topics work.
    pub notes: Vec<String>,
}

/// One topic and what became of it.
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

/// What became of a topic or consumer group that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// It was not there.
    Missing,
    /// Nothing says that we created it: it was there before, or an earlier version created it.
    Kept,
}

/// A property of a topic, or of the brokers that it is on, that is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub topic: String,
    /// `partitions`, `replication.factor`, the name of a setting, or [`VERSION`].
    pub what: &'static str,
    pub found: String,
    /// A number is a minimum where more does no harm.
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

/// Makes the topics the owner's, makes the missing ones and waits until every partition has a leader. An error if Kafka is
/// not to be had at all or the topics are another's; then nothing was written.
pub async fn ensure(config: &ClientConfig, wanted: &Wanted<'_>) -> Result<Found, Error> {
    each(&Cluster::connect(config)?, wanted, Mode::Ensure).await
}

/// Are the topics there, the owner's, and as they should be? Reads only. Errors as [`ensure`].
pub async fn check(config: &ClientConfig, wanted: &Wanted<'_>) -> Result<Found, Error> {
    each(&Cluster::connect(config)?, wanted, Mode::Check).await
}

/// Deletes those of the topics that we created, with all that is in them, and waits until they are gone. The relay topic goes
/// last, since it says which those are. One answer per topic, in the order of [`Topics`]' fields; an error instead if Kafka
/// is not to be had at all or the topics are another's.
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

/// Tells whether [`remove`] would keep the events' topic. The consumer group must then stay as well: the next one of its name
/// would begin at the oldest event and notify every user again.
pub async fn keeps_events(config: &ClientConfig, topics: &Topics, owner: &str) -> Result<bool, Error> {
    let cluster = Cluster::connect(config)?;
    if cluster.look(&topics.orders).await?.is_none() {
        return Ok(false);
    }
    let ownership = match ledger(&cluster, &topics.relay).await? {
        Some(ledger) => ledger.read().await?,
        None => owner::Ownership::default(),
    };
    Ok(ownership.owner() != Some(owner) || !ownership.created(&topics.orders))
}

/// Deletes a consumer group with its offsets. One that has members is left: that is a transient error, as those may be
/// about to leave. It is up to the caller to know that the group is the owner's: [`belongs_to`].
pub async fn remove_group(config: &ClientConfig, group: &str) -> Result<Removal, Error> {
    let deleted = Cluster::connect(config)?.delete_group(group).await?;
    Ok(if deleted { Removal::Removed } else { Removal::Missing })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Ensure,
    Check,
}

/// The relay topic goes first and alone: it says whose the topics are, and when Kafka is not to be had, nobody needs to wait
/// for that four times. Then the events' topic, as its notifications need as many partitions as it really has.
async fn each(cluster: &Cluster, wanted: &Wanted<'_>, mode: Mode) -> Result<Found, Error> {
    let (relay, ledger) = relay(cluster, wanted, mode).await?;
    let relay = Topic { name: wanted.topics.relay.clone(), outcome: relay };
    // Without an owner nothing is made.
    let mode = if ledger.is_some() { mode } else { Mode::Check };

    let plan = Plan::orders(wanted);
    let outcome = one(cluster, &plan, mode).await;
    let mut orders = Topic { name: plan.name, outcome };
    let brokers = cluster.brokers(&orders.name).await;
    if let Ok(Outcome::Created { differences, .. } | Outcome::Exists { differences, .. }) = &mut orders.outcome
        && brokers.iter().any(|settings| settings.contains_key(SETTING_OF_4_3))
    {
        differences.push(Difference::of_version(&orders.name));
    }
    let partitions = orders.outcome.as_ref().map_or(wanted.partitions, Outcome::partitions);
    let others = Plan::others(wanted, partitions).map(|plan| async move {
        let outcome = one(cluster, &plan, mode).await;
        Topic { name: plan.name, outcome }
    });
    let others = join_all(others).await;
    let topics: Vec<Topic> = std::iter::once(orders).chain(others).chain([relay]).collect();
    if let Some(ledger) = &ledger {
        // One that is made and not noted, because this run ends here, is never removed.
        let created = topics.iter().filter(|topic| matches!(topic.outcome, Ok(Outcome::Created { .. })));
        ledger.remember(created.map(|topic| topic.name.as_str())).await?;
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

/// The relay topic, and if it says that the topics are the owner's, where it says so. An error if they are another's, or if
/// Kafka is not to be had at all.
async fn relay<'a>(
    cluster: &'a Cluster,
    wanted: &'a Wanted<'_>,
    mode: Mode,
) -> Result<(Result<Outcome, Error>, Option<Ledger<'a>>), Error> {
    let plan = Plan::relay(wanted);
    let adopt = if mode == Mode::Ensure { wanted.adopt } else { Adopt::Nothing };
    // Before anything is written.
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
    let mut outcome = match one(cluster, &plan, mode).await {
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
        // An earlier version made it.
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

/// None: there is no relay topic.
async fn ledger<'a>(cluster: &'a Cluster, relay: &'a str) -> Result<Option<Ledger<'a>>, Error> {
    let shape = cluster.look(relay).await?;
    Ok(shape.map(|shape| Ledger { cluster, relay, partition: shape.partitions - 1 }))
}

async fn one(cluster: &Cluster, plan: &Plan, mode: Mode) -> Result<Outcome, Error> {
    match mode {
        Mode::Ensure => ensure_one(cluster, plan).await,
        Mode::Check => check_one(cluster, plan).await,
    }
}

async fn ensure_one(cluster: &Cluster, plan: &Plan) -> Result<Outcome, Error> {
    let created = match cluster.look(&plan.name).await? {
        Some(_) => false,
        None => cluster.create(plan).await?,
    };
    let least = if created { plan.partitions } else { 1 };
    let shape = cluster.wait_until_led(&plan.name, least).await?;
    if created {
        // A broker that does not know the new topic yet takes nothing back.
        let keeping = cluster.settings(&plan.name).await.ok().map(|found| Keeping::of(shape.replicas, &found));
        return Ok(Outcome::Created { partitions: shape.partitions, differences: Vec::new(), keeping });
    }
    judge(cluster, plan, &shape).await
}

async fn check_one(cluster: &Cluster, plan: &Plan) -> Result<Outcome, Error> {
    let shape = cluster.look(&plan.name).await?.ok_or(Error::Missing)?;
    let outcome = judge(cluster, plan, &shape).await?;
    if shape.led { Ok(outcome) } else { Err(Error::NoLeader) }
}

async fn judge(cluster: &Cluster, plan: &Plan, shape: &Shape) -> Result<Outcome, Error> {
    let settings = cluster.settings(&plan.name).await?;
    let keeping = Some(Keeping::of(shape.replicas, &settings));
    Ok(Outcome::Exists { partitions: shape.partitions, differences: plan.judge(shape, &settings)?, keeping })
}

async fn remove_one(cluster: &Cluster, name: &str, created: bool) -> Result<Removal, Error> {
    if cluster.look(name).await?.is_none() {
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
            Self::Missing => "not there",
            Self::Kept => "kept, as nothing says that an OrderFlow created it",
        })
    }
}

impl Difference {
    /// Brokers that forget to end transactions: docs/guarantees.md tells more.
    fn of_version(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            what: VERSION,
            found: "4.3 or later".to_owned(),
            expected: "4.0 to 4.2, as 4.3.0 to 4.4.0 lose ends of transactions when brokers restart (KAFKA-20734)"
                .to_owned(),
        }
    }
}

/// Without the topic, which the reader knows.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, expected {}", self.what, self.found, self.expected)
    }
}
