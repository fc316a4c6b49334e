//! Whose the topics are and which of them an OrderFlow created, as the cluster itself says: records in the last partition of
//! the relay topic, which is no shard's. They hold for every name of the brokers and for every operator.
//!
//! The first claim in the log counts, so two owners that claim the topics in the same instant agree on who has them. A claim
//! that stands is never written again, so compaction keeps the order.

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

/// Key of a claim, before the owner. A tombstone takes the claim back.
const CLAIM: &str = "owner:";

/// Key that says that an OrderFlow created a topic, before the topic's name.
const CREATED: &str = "created:";

/// Longest wait for all records, and for the acknowledgement of one.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the records say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ownership {
    /// In the order of the log.
    claims: Vec<String>,
    created: BTreeSet<String>,
}

/// Where the records of one relay topic stand.
pub(super) struct Ledger<'a> {
    pub cluster: &'a Cluster,
    pub relay: &'a str,
    /// The last one.
    pub partition: i32,
}

/// A key and its value; without a value it is a tombstone.
type Record = (String, Option<String>);

impl Ownership {
    pub(super) fn owner(&self) -> Option<&str> {
        self.claims.first().map(String::as_str)
    }

    /// Whether an OrderFlow created the topic.
    pub(super) fn created(&self, topic: &str) -> bool {
        self.created.contains(topic)
    }

    /// Takes in the next record of the log. False if it is none of these.
    fn take(&mut self, key: Option<&[u8]>, stands: bool) -> bool {
        let Some(key) = key.and_then(|key| str::from_utf8(key).ok()) else { return false };
        if let Some(owner) = key.strip_prefix(CLAIM) {
            match self.claims.iter().position(|claim| claim == owner) {
                None if stands => self.claims.push(owner.to_owned()),
                Some(at) if !stands => drop(self.claims.remove(at)),
                _ => {}
            }
            true
        } else if let Some(topic) = key.strip_prefix(CREATED) {
            if stands {
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
            // A name that librdkafka wants; there is no such group.
            .set("group.id", format!("{}.reader", self.relay))
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            // The records are in no transaction. Readers of committed records would wait for those of a relay, should the
            // partition turn out to be a shard's.
            .set("isolation.level", "read_uncommitted")
            .set("fetch.wait.max.ms", "10");
        let (relay, partition) = (self.relay.to_owned(), self.partition);
        let blocking = tokio::task::spawn_blocking(move || read(&config, &relay, partition));
        let ownership = blocking.await.expect("the blocking part does not panic and is not cancelled");
        ownership.map_err(|error| self.cluster.error("read whose the topics are", &error))
    }

    /// Makes the topics `owner`'s, unless they are another's from whom `adopt` does not allow to take them.
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
        // Another may have claimed them in the same instant.
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

    /// Notes that we created these topics.
    pub(super) async fn remember(&self, created: impl IntoIterator<Item = &str>) -> Result<(), Error> {
        let note = |topic: &str| (format!("{CREATED}{topic}"), Some("true".to_owned()));
        self.write(created.into_iter().map(note).collect()).await
    }

    /// Makes the topics nobody's, and forgets who created them.
    pub(super) async fn release(&self, ownership: &Ownership) -> Result<(), Error> {
        let created = ownership.created.iter().map(|topic| (format!("{CREATED}{topic}"), None));
        // The claims last: until then the next try knows whose the topics are.
        self.write(created.chain(ownership.claims.iter().map(|claim| withdrawn(claim))).collect()).await
    }

    /// Writes one record after the other, each acknowledged by all replicas in sync.
    async fn write(&self, records: Vec<Record>) -> Result<(), Error> {
        if records.is_empty() {
            return Ok(());
        }
        let mut config = self.cluster.config.clone();
        config.set("acks", "all").set("message.timeout.ms", TIMEOUT.as_millis().to_string()).set("linger.ms", "0");
        let (relay, partition) = (self.relay.to_owned(), self.partition);
        let blocking = tokio::task::spawn_blocking(move || write(&config, &relay, partition, &records));
        let written = blocking.await.expect("the blocking part does not panic and is not cancelled");
        written.map_err(|error| self.cluster.error("write whose the topics are", &error))
    }
}

fn claimed(owner: &str) -> Record {
    (format!("{CLAIM}{owner}"), Some("true".to_owned()))
}

fn withdrawn(owner: &str) -> Record {
    (format!("{CLAIM}{owner}"), None)
}

/// Reads until the high watermark is reached: a broker that has just become the leader may show an end before it.
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
            // A relay's: the topic was made before it had a partition for these.
            Some(Ok(record)) if !ownership.take(record.key(), record.payload().is_some()) => {
                return Ok(Ownership::default());
            }
            Some(Ok(record)) if record.offset() + 1 >= high => return Ok(ownership),
            Some(Err(error)) if !kafka::is_transient(&error) && !is_settling(&error) => return Err(error),
            None | Some(_) => {}
        }
    }
    Err(KafkaError::MessageConsumption(Code::OperationTimedOut))
}

/// A broker may not know yet that it leads a new partition, though the metadata say so.
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
        log.iter().all(|(key, stands)| ownership.take(Some(key.as_bytes()), *stands)).then_some(ownership)
    }

    #[test]
    fn the_first_claim_that_stands_counts() {
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
    fn what_was_created_is_known_until_it_is_forgotten() {
        let created = |log| ownership(log).unwrap().created("orders.dlq");
        assert!(created(&[("created:orders.dlq", true), ("owner:shop/one", true)]));
        assert!(!created(&[("created:orders.dlq", true), ("created:orders.dlq", false)]));
        assert!(!created(&[("created:orders", true)]));
    }

    #[test]
    fn a_relays_record_is_none_of_these() {
        assert_eq!(ownership(&[("shard1", true)]), None);
        assert!(!Ownership::default().take(None, true) && !Ownership::default().take(Some(b"\xff"), true));
    }
}
