//! The four topics. Missing ones are made; those that exist are never changed, because nobody but their owner knows what
//! else depends on them: what differs is said, and what cannot work is an error. Several runs may make them at once.
//!
//! A topic cannot say whose it is. Whoever removes topics has to know that, from the shards' databases.

mod cluster;
mod error;
mod plan;

use std::{fmt, time::Duration};

use futures_util::future::join_all;
use orderflow_core::Topics;
use rdkafka::ClientConfig;

use cluster::Cluster;
pub use error::Error;
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
pub struct Wanted {
    pub topics: Topics,
    /// Of `orders` and its notifications.
    pub partitions: i32,
    /// Each has one partition of the relays' progress records.
    pub shards: i32,
    /// None: the broker's default.
    pub replication_factor: Option<i32>,
    pub retention: Duration,
}

/// One topic and what became of it.
#[derive(Debug)]
pub struct Topic<T = Outcome> {
    pub name: String,
    pub outcome: Result<T, Error>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Created { partitions: i32, differences: Vec<Difference> },
    Exists { partitions: i32, differences: Vec<Difference> },
}

/// What became of a topic or consumer group that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// It was not there.
    Missing,
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

/// Makes the missing ones and waits until every partition has a leader. One answer per topic, in the order of
/// [`Topics`]' fields; an error instead if Kafka is not to be had at all.
pub async fn ensure(config: &ClientConfig, wanted: &Wanted) -> Result<Vec<Topic>, Error> {
    each(&Cluster::connect(config)?, wanted, Mode::Ensure).await
}

/// Are the topics there, and as they should be? Reads only.
pub async fn check(config: &ClientConfig, wanted: &Wanted) -> Result<Vec<Topic>, Error> {
    each(&Cluster::connect(config)?, wanted, Mode::Check).await
}

/// Deletes the topics with all that is in them, and waits until they are gone. One answer per topic, in the order of
/// [`Topics`]' fields; an error instead if Kafka is not to be had at all. It is up to the caller to know that they are the
/// owner's: [`shard::is_ours`](crate::shard::is_ours).
pub async fn remove(config: &ClientConfig, topics: &Topics) -> Result<Vec<Topic<Removal>>, Error> {
    let cluster = Cluster::connect(config)?;
    let remove = async |name: &str| Topic { name: name.to_owned(), outcome: remove_one(&cluster, name).await };
    let first = remove(&topics.orders).await;
    let first = first.require_brokers()?;
    let others = join_all([&topics.notifications, &topics.dead_letters, &topics.relay].map(|name| remove(name))).await;
    Ok(std::iter::once(first).chain(others).collect())
}

/// Deletes a consumer group with its offsets. One that has members is left: that is a transient error, as those may be
/// about to leave.
pub async fn remove_group(config: &ClientConfig, group: &str) -> Result<Removal, Error> {
    let deleted = Cluster::connect(config)?.delete_group(group).await?;
    Ok(if deleted { Removal::Removed } else { Removal::Missing })
}

#[derive(Clone, Copy)]
enum Mode {
    Ensure,
    Check,
}

/// The events' topic goes first and alone: its notifications need as many partitions as it really has, and when Kafka is
/// not to be had, nobody needs to wait for that four times.
async fn each(cluster: &Cluster, wanted: &Wanted, mode: Mode) -> Result<Vec<Topic>, Error> {
    let plan = Plan::orders(wanted);
    let outcome = one(cluster, &plan, mode).await;
    let mut orders = Topic { name: plan.name, outcome }.require_brokers()?;
    if let Ok(Outcome::Created { differences, .. } | Outcome::Exists { differences, .. }) = &mut orders.outcome
        && cluster.knows_setting(SETTING_OF_4_3, &orders.name).await
    {
        differences.push(Difference::of_version(&orders.name));
    }
    let partitions = orders.outcome.as_ref().map_or(wanted.partitions, Outcome::partitions);
    let others = Plan::others(wanted, partitions).map(|plan| async move {
        let outcome = one(cluster, &plan, mode).await;
        Topic { name: plan.name, outcome }
    });
    let others = join_all(others).await;
    Ok(std::iter::once(orders).chain(others).collect())
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
        return Ok(Outcome::Created { partitions: shape.partitions, differences: Vec::new() });
    }
    let differences = plan.judge(&shape, &cluster.settings(&plan.name).await?)?;
    Ok(Outcome::Exists { partitions: shape.partitions, differences })
}

async fn check_one(cluster: &Cluster, plan: &Plan) -> Result<Outcome, Error> {
    let shape = cluster.look(&plan.name).await?.ok_or(Error::Missing)?;
    let differences = plan.judge(&shape, &cluster.settings(&plan.name).await?)?;
    if shape.led { Ok(Outcome::Exists { partitions: shape.partitions, differences }) } else { Err(Error::NoLeader) }
}

async fn remove_one(cluster: &Cluster, name: &str) -> Result<Removal, Error> {
    if cluster.look(name).await?.is_none() || !cluster.delete(name).await? {
        return Ok(Removal::Missing);
    }
    cluster.wait_until_gone(name).await?;
    Ok(Removal::Removed)
}

impl<T> Topic<T> {
    fn require_brokers(self) -> Result<Self, Error> {
        match self.outcome {
            Err(error) if error.is_about_the_brokers() => Err(error),
            outcome => Ok(Self { outcome, ..self }),
        }
    }
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
