//! The progress record: which events the last transaction of a shard's relay published.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use orderflow_core::{ShardIndex, Topics, json};
use orderflow_service::kafka::{self, Quiet};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::session::OutboxRow;

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
    pub fn read_last(settings: &kafka::Settings, topics: &Topics, shard: ShardIndex) -> anyhow::Result<Option<Self>> {
        let mut config = settings.consumer(&format!("{}.reader", topics.relay));
        config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
        let consumer = BaseConsumer::from_config_and_context(&config, Quiet::default()).context("make a consumer")?;
        let (topic, partition) = (topics.relay.as_str(), shard.relay_partition());
        let (low, high) = consumer.fetch_watermarks(topic, partition, TIMEOUT).context("read the offsets' range")?;
        // A transaction of the relay is one record and one marker here; an aborted one leaves both behind, unread.
        let mut reach = 4;
        loop {
            let start = low.max(high - reach);
            let mut assignment = TopicPartitionList::new();
            assignment.add_partition_offset(topic, partition, Offset::Offset(start))?;
            consumer.assign(&assignment).context("assign the relay's partition")?;
            if let Some(last) = last_until_end(&consumer)? {
                return Ok(Some(last));
            }
            if start == low {
                return Ok(None);
            }
            reach *= 8;
        }
    }
}

fn last_until_end(consumer: &BaseConsumer<Quiet>) -> anyhow::Result<Option<Progress>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut last = None;
    while Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Ok(message)) => {
                let value = message.payload().context("a progress record has no value")?;
                last = Some(json::from_object(value).context("read a progress record")?);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(last),
            Some(Err(error)) => return Err(error).context("read the progress records"),
        }
    }
    bail!("the progress records could not be read within {} s", TIMEOUT.as_secs())
}
