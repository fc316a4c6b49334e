//! The records of a Kafka topic, read from its beginning to its end by a reader without a group.
//!
//! With [`Isolation::ReadCommitted`] the end is the last stable offset: records of aborted and open transactions are
//! not returned, as the product's readers do not see them either.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    config::ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
};
use serde::de::DeserializeOwned;

use crate::{eventually, kafka};

/// The longest a read takes: a million small records take about ten seconds.
const DEADLINE: Duration = Duration::from_mins(1);

/// The treatment of records of unfinished and aborted transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    ReadCommitted,
    ReadUncommitted,
}

/// A record as it is in the topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<String>,
    /// Absent for a tombstone.
    pub value: Option<Vec<u8>>,
    pub headers: BTreeMap<String, String>,
    /// Milliseconds since 1970, as the broker reports them.
    pub timestamp: Option<i64>,
}

impl Record {
    /// Returns the value as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }

    /// Returns the value as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(self.value.as_deref().unwrap_or_default())
            .with_context(|| format!("read record {}/{} as JSON", self.partition, self.offset))
    }
}

/// Reads all records of `topic`, ordered by partition and offset, from a Kafka that requires no login.
///
/// # Errors
/// If the topic does not exist or its end is not reached within a minute.
pub async fn read_topic(bootstrap: &str, topic: &str, isolation: Isolation) -> Result<Vec<Record>> {
    read_with(kafka::plain_client(bootstrap), topic, isolation).await
}

/// Creates a topic with the broker's defaults, and waits until it can be read.
pub async fn create(client: ClientConfig, name: &str, partitions: i32) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = client.create()?;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for result in admin.create_topics([&topic], &AdminOptions::new()).await? {
        result.map_err(|(name, code)| anyhow::anyhow!("create topic {name}: {code}"))?;
    }
    eventually(&format!("topic {name} to be readable"), DEADLINE, async || {
        read_with(client.clone(), name, Isolation::ReadUncommitted).await.map(drop)
    })
    .await
}

/// Reads all records from any Kafka; `client` has the settings to reach it ([`crate::Kafka::client`]).
pub async fn read_with(mut client: ClientConfig, topic: &str, isolation: Isolation) -> Result<Vec<Record>> {
    let reader: BaseConsumer = client
        // librdkafka requires a group name even of a reader that never joins or commits.
        .set("group.id", "testbed-reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("allow.auto.create.topics", "false")
        // The end is an empty response, which the broker would otherwise hold back for 500 ms.
        .set("fetch.wait.max.ms", "10")
        .set(
            "isolation.level",
            match isolation {
                Isolation::ReadCommitted => "read_committed",
                Isolation::ReadUncommitted => "read_uncommitted",
            },
        )
        .create()
        .context("create a Kafka reader")?;
    let topic = topic.to_owned();
    let reading =
        tokio::task::spawn_blocking(move || read(&reader, &topic).with_context(|| format!("read topic {topic}")));
    reading.await.context("read Kafka")?
}

fn read(reader: &BaseConsumer, topic: &str) -> Result<Vec<Record>> {
    let end = Instant::now() + DEADLINE;
    let mut unfinished = partitions(reader, topic)?;
    let mut beginning = TopicPartitionList::new();
    for &partition in &unfinished {
        beginning.add_partition_offset(topic, partition, Offset::Beginning).context("set the start of the reader")?;
    }
    reader.assign(&beginning).context("assign partitions")?;
    let mut records = Vec::new();
    while !unfinished.is_empty() {
        ensure!(Instant::now() < end, "{DEADLINE:?} passed before the end of partitions {unfinished:?}");
        match reader.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => records.push(record(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => unfinished.retain(|other| *other != partition),
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}

fn partitions(reader: &BaseConsumer, topic: &str) -> Result<Vec<i32>> {
    let metadata = reader.fetch_metadata(Some(topic), Duration::from_secs(10)).context("read metadata")?;
    let partitions: Vec<i32> = metadata
        .topics()
        .iter()
        .filter(|found| found.error().is_none())
        .flat_map(|found| found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id))
        .collect();
    ensure!(!partitions.is_empty(), "the topic does not exist");
    Ok(partitions)
}

fn record(message: &BorrowedMessage<'_>) -> Record {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Record {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(text),
        value: message.payload().map(<[u8]>::to_vec),
        headers: message
            .headers()
            .into_iter()
            .flat_map(Headers::iter)
            .map(|header| (header.key.to_owned(), text(header.value.unwrap_or_default())))
            .collect(),
        timestamp: message.timestamp().to_millis(),
    }
}
