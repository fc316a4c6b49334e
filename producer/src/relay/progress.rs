//! The progress record: the events that the last transaction of a shard's relay published.

use std::time::{Duration, Instant};

use anyhow::Context;
use orderflow_core::{Shard, Topics, json};
use orderflow_service::kafka::{
    self,
    reader::{Deadline, Ranges, Reader},
};
use rdkafka::Message;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::outbox::OutboxRow;

/// Longest time for each call to Kafka.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The value of a record in the relay topic, as JSON; its key is the shard's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Range of the outbox that held the events.
    pub first_seq: i64,
    pub last_seq: i64,
    pub event_ids: Vec<Uuid>,
}

impl Progress {
    /// Lists the events of a batch that is not empty.
    pub fn new(batch: &[OutboxRow]) -> Self {
        Self {
            first_seq: batch.first().map_or(0, |row| row.seq),
            last_seq: batch.last().map_or(0, |row| row.seq),
            event_ids: batch.iter().map(|row| row.event_id).collect(),
        }
    }

    /// Reads the last committed record of a shard from the end of its partition backwards. Call it after
    /// `init_transactions`, which has settled any open transaction. Any failure ends the read: the relay then restarts.
    pub fn read_last(settings: &kafka::Settings, topics: &Topics, shard: &Shard) -> anyhow::Result<Option<Self>> {
        let mut config = settings.consumer(&format!("{}.reader", topics.relay));
        config.set("fetch.wait.max.ms", "10");
        let reader = Reader::new(config).context("make a consumer")?;
        Self::read_last_with(&reader, topics, shard)
    }

    fn read_last_with(reader: &Reader, topics: &Topics, shard: &Shard) -> anyhow::Result<Option<Self>> {
        let deadline = || Deadline::At(Instant::now() + TIMEOUT);
        let (topic, partition) = (topics.relay.as_str(), shard.number.relay_partition());
        // Up to the high-water mark, not to the end of a poll: a record that is missed there lists events that are
        // already published.
        let (low, high) = reader.extent(topic, partition, deadline())?;
        // A transaction of the relay is one record and one marker here; an aborted one leaves both behind, unread.
        let mut reach = 4;
        let mut last = None;
        loop {
            let start = low.max(high - reach);
            let records = reader.read(topic, &Ranges::from([(partition, (start, high))]), deadline())?.fail_fast();
            for record in records {
                let record = record?;
                // The topic also has a record of its owner.
                if record.key() == Some(shard.name.as_bytes()) {
                    let value = record.payload().context("a progress record has no value")?;
                    last = Some(json::from_object(value).context("read a progress record")?);
                }
            }
            if last.is_some() || start == low {
                return Ok(last);
            }
            reach *= 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use orderflow_core::ShardMap;
    use rdkafka::{
        ClientConfig,
        mocking::MockCluster,
        producer::{BaseProducer, BaseRecord, Producer},
    };

    use super::*;

    /// Uses librdkafka's mock brokers, because a unit test starts no server.
    #[test]
    fn records_with_another_key_do_not_replace_the_shards() {
        let (topics, shards) = (Topics::named("orders"), "shard1=A-M".parse::<ShardMap>().unwrap());
        let shard = shards.iter().next().unwrap();
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(&topics.relay, 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers());
        let producer: BaseProducer = config.create().unwrap();
        let write = |key: &str, value: &str| {
            producer.send(BaseRecord::to(&topics.relay).partition(0).key(key).payload(value)).unwrap();
            producer.flush(TIMEOUT).unwrap();
        };
        config.set("group.id", "reader");
        let reader = Reader::new(config).unwrap();
        let read = || Progress::read_last_with(&reader, &topics, shard).unwrap().map(|progress| progress.last_seq);

        assert_eq!(read(), None);
        write("owner", "shop/main");
        assert_eq!(read(), None);
        write(&shard.name, r#"{"first_seq":1,"last_seq":2,"event_ids":[]}"#);
        for _ in 0..10 {
            write("owner", "shop/main");
        }
        assert_eq!(read(), Some(2));
    }
}
