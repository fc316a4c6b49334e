//! The progress record: which events the last transaction of a shard's relay published.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use orderflow_core::{Shard, Topics, json};
use orderflow_service::kafka::{self, Quiet};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::outbox::OutboxRow;

/// Longest time for reading the last record.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The value of a record in the relay topic, as JSON; its key is the shard's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Range of the outbox in which the events stood.
    pub first_seq: i64,
    pub last_seq: i64,
    pub event_ids: Vec<Uuid>,
}

impl Progress {
    /// Of a batch that is not empty.
    pub fn of(batch: &[OutboxRow]) -> Self {
        Self {
            first_seq: batch.first().map_or(0, |row| row.seq),
            last_seq: batch.last().map_or(0, |row| row.seq),
            event_ids: batch.iter().map(|row| row.event_id).collect(),
        }
    }

    /// The last committed record of a shard, read from the end of its partition backwards. Call it after
    /// `init_transactions`, which has settled whatever transaction was open.
    pub fn read_last(settings: &kafka::Settings, topics: &Topics, shard: &Shard) -> anyhow::Result<Option<Self>> {
        let mut config = settings.consumer(&format!("{}.reader", topics.relay));
        config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
        let consumer = BaseConsumer::from_config_and_context(&config, Quiet::default()).context("make a consumer")?;
        let (topic, partition) = (topics.relay.as_str(), shard.index.relay_partition());
        let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT).context("read the offsets' range")?;
        if low == high {
            return Ok(None);
        }
        // A transaction of the relay is one record and one marker here; an aborted one leaves both behind, unread.
        let mut reach = 4;
        loop {
            let start = low.max(high - reach);
            let mut assignment = TopicPartitionList::new();
            assignment.add_partition_offset(topic, partition, Offset::Offset(start))?;
            consumer.assign(&assignment).context("assign the relay's partition")?;
            if let Some(last) = last_before(&consumer, (topic, partition), &shard.name, high, TIMEOUT)? {
                return Ok(Some(last));
            }
            if start == low {
                return Ok(None);
            }
            reach *= 8;
        }
    }
}

/// Returns the last record of this key before `end`, which is the partition's high-water mark and lies behind the position assigned. The
/// end of partition that a client reports is not enough: a broker that was just elected serves reads up to a lower mark
/// until its followers have answered, and the record behind it lists what is already published.
fn last_before(
    consumer: &BaseConsumer<Quiet>,
    (topic, partition): (&str, i32),
    key: &str,
    end: i64,
    timeout: Duration,
) -> anyhow::Result<Option<Progress>> {
    let deadline = Instant::now() + timeout;
    let (mut last, mut position) = (None, 0);
    while Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(100)) {
            // The topic also has a record of its owner.
            Some(Ok(message)) if message.key() != Some(key.as_bytes()) => {}
            Some(Ok(message)) => {
                let value = message.payload().context("a progress record has no value")?;
                last = Some(json::from_object(value).context("read a progress record")?);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => {}
            Some(Err(error)) => return Err(error).context("read the progress records"),
            // Until the new assignment is heard of, the position may be that of the one before.
            None => continue,
        }
        // The position passes transaction markers, which are never handed out.
        let positions = consumer.position().context("read the position")?;
        let reached = positions.find_partition(topic, partition).map(|found| found.offset());
        position = if let Some(Offset::Offset(reached)) = reached { reached } else { position };
        if position >= end {
            return Ok(last);
        }
    }
    bail!("the progress records could be read up to offset {position} and not to their end, {end}, within {timeout:?}")
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        ClientConfig,
        mocking::MockCluster,
        producer::{BaseProducer, BaseRecord, Producer},
    };

    use super::*;

    /// Uses librdkafka's own simulation of brokers: that a real cluster's new leader lags in its high-water mark cannot be
    /// arranged for a moment of our choice.
    #[test]
    fn the_end_of_a_partition_below_its_high_water_mark_is_not_the_end() {
        const TOPIC: &str = "orders.relay";
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        let config = |settings: &[(&str, &str)]| {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", cluster.bootstrap_servers());
            for (name, value) in settings {
                config.set(*name, *value);
            }
            config
        };
        let producer: BaseProducer = config(&[]).create().unwrap();
        let write = |key: &str, last_seq| {
            let progress = Progress { first_seq: 1, last_seq, event_ids: Vec::new() };
            let value = serde_json::to_vec(&progress).unwrap();
            producer.send(BaseRecord::to(TOPIC).partition(0).key(key).payload(&value)).unwrap();
            producer.flush(TIMEOUT).unwrap();
        };
        let config = config(&[("group.id", "reader"), ("enable.partition.eof", "true")]);
        let consumer: BaseConsumer<_> = config.create_with_context(Quiet::default()).unwrap();
        let read = |end, timeout| {
            let mut assignment = TopicPartitionList::new();
            assignment.add_partition_offset(TOPIC, 0, Offset::Beginning).unwrap();
            consumer.assign(&assignment).unwrap();
            last_before(&consumer, (TOPIC, 0), "shard1", end, timeout)
                .map(|last| last.map(|progress| progress.last_seq))
        };

        write("shard1", 1);
        write("shard1", 2);
        assert_eq!(read(2, TIMEOUT).unwrap(), Some(2));
        let error = read(3, Duration::from_secs(1)).unwrap_err().to_string();
        assert!(error.contains("up to offset 2 and not to their end, 3"), "{error}");
        write("shard1", 3);
        assert_eq!(read(3, TIMEOUT).unwrap(), Some(3));
        write("another", 4);
        assert_eq!(read(4, TIMEOUT).unwrap(), Some(3));
    }
}
