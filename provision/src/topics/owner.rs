//! The recorded owner of the topics, and which of them an OrderFlow created: records in the last partition of the relay
//! topic, which belongs to no shard. They are valid for every address of the brokers and for every operator.
//!
//! The first claim in the log counts, so two owners that claim the topics at the same moment agree on the result. A
//! valid claim is never written again, so compaction keeps the order.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use orderflow_service::kafka::{self, LogContext};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    producer::{FutureProducer, FutureRecord},
    types::RDKafkaErrorCode as Code,
};
use tokio::runtime::Handle;

use super::{Error, cluster::Cluster};
use crate::Adopt;

/// The prefix of the key of a claim, before the owner. A tombstone withdraws the claim.
const CLAIM: &str = "owner:";

/// The prefix of the key of a topic that an OrderFlow created, before the topic's name.
const CREATED: &str = "created:";

/// The longest wait for all records, and for the acknowledgement of one.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The content of the records.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ownership {
    /// The claiming owners, in the order of the log.
    claims: Vec<String>,
    created: BTreeSet<String>,
}

/// The records of one relay topic.
pub(super) struct Ledger<'a> {
    pub cluster: &'a Cluster,
    pub relay: &'a str,
    /// The partition of the records: the last one.
    pub partition: i32,
}

/// A key and its value. Without a value it is a tombstone.
type Record = (String, Option<String>);

impl Ownership {
    pub(super) fn owner(&self) -> Option<&str> {
        self.claims.first().map(String::as_str)
    }

    /// Returns true if an OrderFlow created the topic.
    pub(super) fn created(&self, topic: &str) -> bool {
        self.created.contains(topic)
    }

    /// Applies the next record of the log. Returns false if it is not one of ours.
    fn apply(&mut self, key: Option<&[u8]>, present: bool) -> bool {
        let Some(key) = key.and_then(|key| str::from_utf8(key).ok()) else { return false };
        if let Some(owner) = key.strip_prefix(CLAIM) {
            match self.claims.iter().position(|claim| claim == owner) {
                None if present => self.claims.push(owner.to_owned()),
                Some(at) if !present => drop(self.claims.remove(at)),
                _ => {}
            }
            true
        } else if let Some(topic) = key.strip_prefix(CREATED) {
            if present {
                self.created.insert(topic.to_owned());
            } else {
                self.created.remove(topic);
            }
            true
        } else {
            false
        }
    }
}

impl Ledger<'_> {
    pub(super) async fn read(&self) -> Result<Ownership, Error> {
        let mut config = self.cluster.config.clone();
        config
            // librdkafka requires a name; the group does not exist.
            .set("group.id", format!("{}.reader", self.relay))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            // The records are in no transaction. A reader of committed records would wait for a relay's transaction,
            // should the partition belong to a shard.
            .set("isolation.level", "read_uncommitted")
            .set("fetch.wait.max.ms", "10");
        let (relay, partition) = (self.relay.to_owned(), self.partition);
        let blocking = tokio::task::spawn_blocking(move || read(&config, &relay, partition));
        let ownership = blocking.await.expect("the blocking part does not panic and is not cancelled");
        ownership.map_err(|error| self.cluster.error("read the owner of the topics", &error))
    }

    /// Claims the topics for `owner`, unless another owner has them and `adopt` does not allow that one.
    pub(super) async fn claim(&self, owner: &str, adopt: Adopt<'_>) -> Result<(), Error> {
        let found = self.read().await?;
        let others: Vec<&String> = found.claims.iter().take_while(|claim| *claim != owner).collect();
        if let Some(refused) = others.iter().find(|other| !adopt.allows(other)) {
            return Err(Error::OwnedByAnother { owner: (*refused).clone() });
        }
        let own = (!found.claims.iter().any(|claim| claim == owner)).then(|| claimed(owner));
        let records: Vec<Record> = own.into_iter().chain(others.into_iter().map(|other| withdrawn(other))).collect();
        if records.is_empty() {
            return Ok(());
        }
        self.write(records).await?;
        // Another owner may have claimed them at the same moment.
        let found = self.read().await?;
        match found.owner() {
            Some(first) if first == owner => Ok(()),
            Some(first) => {
                self.write(vec![withdrawn(owner)]).await?;
                Err(Error::OwnedByAnother { owner: first.to_owned() })
            }
            None => Err(Error::Unclaimed),
        }
    }

    /// Records that an OrderFlow created these topics.
    pub(super) async fn record_created(&self, created: impl IntoIterator<Item = &str>) -> Result<(), Error> {
        let record = |topic: &str| (format!("{CREATED}{topic}"), Some("true".to_owned()));
        self.write(created.into_iter().map(record).collect()).await
    }

    /// Removes the owner of the topics and the records of their creation.
    pub(super) async fn release(&self, ownership: &Ownership) -> Result<(), Error> {
        let created = ownership.created.iter().map(|topic| (format!("{CREATED}{topic}"), None));
        // The claims last, so that the next attempt still knows the owner.
        self.write(created.chain(ownership.claims.iter().map(|claim| withdrawn(claim))).collect()).await
    }

    /// Writes one record after the other, each acknowledged by all in-sync replicas.
    async fn write(&self, records: Vec<Record>) -> Result<(), Error> {
        if records.is_empty() {
            return Ok(());
        }
        let mut config = self.cluster.config.clone();
        config.set("acks", "all").set("message.timeout.ms", TIMEOUT.as_millis().to_string()).set("linger.ms", "0");
        let (relay, partition) = (self.relay.to_owned(), self.partition);
        let blocking = tokio::task::spawn_blocking(move || write(&config, &relay, partition, &records));
        let written = blocking.await.expect("the blocking part does not panic and is not cancelled");
        written.map_err(|error| self.cluster.error("write the owner of the topics", &error))
    }
}

fn claimed(owner: &str) -> Record {
    (format!("{CLAIM}{owner}"), Some("true".to_owned()))
}

fn withdrawn(owner: &str) -> Record {
    (format!("{CLAIM}{owner}"), None)
}

/// Reads up to the high watermark. A broker that has just become the leader may report an end of the partition before
/// it.
fn read(config: &ClientConfig, relay: &str, partition: i32) -> KafkaResult<Ownership> {
    let deadline = Instant::now() + TIMEOUT;
    let consumer: BaseConsumer<LogContext> = config.create_with_context(LogContext::default())?;
    let (low, high) = watermarks(&consumer, relay, partition, deadline)?;
    let mut ownership = Ownership::default();
    if low >= high {
        return Ok(ownership);
    }
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(relay, partition, Offset::Offset(low))?;
    consumer.assign(&assignment)?;
    while Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(100)) {
            // A relay's record: the topic was created without a partition for ours.
            Some(Ok(record)) if !ownership.apply(record.key(), record.payload().is_some()) => {
                return Ok(Ownership::default());
            }
            Some(Ok(record)) if record.offset() + 1 >= high => return Ok(ownership),
            Some(Err(error)) if !kafka::is_transient(&error) && !is_settling(&error) => return Err(error),
            None | Some(_) => {}
        }
    }
    Err(KafkaError::MessageConsumption(Code::OperationTimedOut))
}

/// Fetches the watermarks. Retries, because a broker may not know yet that it leads a new partition, though the
/// metadata show it.
fn watermarks(
    consumer: &BaseConsumer<LogContext>,
    relay: &str,
    partition: i32,
    deadline: Instant,
) -> KafkaResult<(i64, i64)> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match consumer.fetch_watermarks(relay, partition, left) {
            Err(error) if is_settling(&error) && !left.is_zero() => std::thread::sleep(Duration::from_millis(50)),
            answer => return answer,
        }
    }
}

fn is_settling(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::UnknownPartition
                | Code::UnknownTopicOrPartition
        )
    )
}

fn write(config: &ClientConfig, relay: &str, partition: i32, records: &[Record]) -> KafkaResult<()> {
    let producer: FutureProducer<LogContext> = config.create_with_context(LogContext::default())?;
    for (key, value) in records {
        let record = FutureRecord::to(relay).partition(partition).key(key);
        let record = FutureRecord { payload: value.as_ref(), ..record };
        Handle::current().block_on(producer.send(record, TIMEOUT)).map_err(|(error, _)| error)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ownership(log: &[(&str, bool)]) -> Option<Ownership> {
        let mut ownership = Ownership::default();
        log.iter().all(|(key, present)| ownership.apply(Some(key.as_bytes()), *present)).then_some(ownership)
    }

    #[test]
    fn the_first_claim_that_is_not_withdrawn_counts() {
        let (one, other) = ("owner:shop/one", "owner:shop/other");
        for (log, owner) in [
            (&[][..], None),
            (&[(one, true)], Some("shop/one")),
            (&[(one, true), (other, true)], Some("shop/one")),
            (&[(one, true), (other, true), (one, true)], Some("shop/one")),
            (&[(one, true), (other, true), (one, false)], Some("shop/other")),
            (&[(one, true), (one, false)], None),
            (&[(one, false)], None),
        ] {
            assert_eq!(ownership(log).unwrap().owner(), owner, "{log:?}");
        }
    }

    #[test]
    fn a_created_topic_is_known_until_its_tombstone() {
        let created = |log| ownership(log).unwrap().created("orders.dlq");
        assert!(created(&[("created:orders.dlq", true), ("owner:shop/one", true)]));
        assert!(!created(&[("created:orders.dlq", true), ("created:orders.dlq", false)]));
        assert!(!created(&[("created:orders", true)]));
    }

    #[test]
    fn a_record_of_a_relay_is_not_applied() {
        assert_eq!(ownership(&[("shard1", true)]), None);
        assert!(!Ownership::default().apply(None, true) && !Ownership::default().apply(Some(b"\xff"), true));
    }
}
