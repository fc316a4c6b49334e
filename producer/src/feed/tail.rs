//! Tails the notifications: read_committed, all partitions, no group. It remembers its positions, so that an outage of
//! Kafka or a new client leaves no gap in the feed and repeats nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use orderflow_core::{Notification, json};
use orderflow_service::{
    Backoff,
    kafka::{self, LogContext, reader},
    shutdown::CancellationToken,
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::BorrowedMessage,
};

use super::{
    Feed,
    frame::{Latest, Pending, SHOWN, Shown},
};

/// Time between two frames while notifications flow: five changes a second make a page live, and cost the same however
/// many notifications there are.
const CUT: Duration = Duration::from_millis(200);

/// Time for which a due frame still takes notifications that are already read.
const GATHER: Duration = Duration::from_millis(20);

/// Longest wait for a notification before `stop` is checked.
const POLL: Duration = Duration::from_millis(250);

/// Time between two checks for new partitions of the topic.
const REFRESH: Duration = Duration::from_secs(30);

/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of times that a position must be outside of its log before it is given up: after a change of leader the end
/// of a log may lag for a moment.
const SIGHTINGS: u32 = 3;

pub struct Tail {
    feed: Feed,
    kafka: kafka::Settings,
    topic: String,
    /// The next offset of each partition; empty until the first read.
    positions: BTreeMap<i32, i64>,
    /// Present until all notifications from before the epoch are read.
    beginning: Option<Beginning>,
    pending: Pending,
    /// The time before which no frame is cut.
    due: Instant,
    /// Number of times in a row that a position was outside of its log.
    lost: u32,
    /// True if notifications were missed: streams get a `reset` once the new positions are known.
    gap: bool,
}

/// The notifications from before the epoch, which are shown to new streams and counted nowhere.
#[derive(Default)]
struct Beginning {
    ends: BTreeMap<i32, i64>,
    unread: BTreeSet<i32>,
    latest: Latest,
}

impl Beginning {
    /// Returns true for a record from before the epoch; a partition that was added later has none.
    fn is_before_end(&self, partition: i32, offset: i64) -> bool {
        self.ends.get(&partition).is_some_and(|end| offset < *end)
    }
}

impl Tail {
    pub fn new(feed: Feed, kafka: kafka::Settings, topic: String) -> Self {
        let pending = Pending::new(&feed.inner.map);
        let (positions, beginning, due) = (BTreeMap::new(), None, Instant::now());
        // An earlier tail died, and its positions are lost.
        let gap = feed.has_begun();
        Self { feed, kafka, topic, positions, beginning, pending, due, lost: 0, gap }
    }

    /// Reads until `stop`, on the calling thread, which it blocks.
    pub fn run(mut self, stop: &CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
        while !stop.is_cancelled() {
            if let Err(error) = self.read(stop, &mut backoff) {
                tracing::debug!(error = format!("{error:#}"), "cannot read the notifications; retrying");
                self.cut();
                let until = Instant::now() + backoff.next_delay();
                while Instant::now() < until && !stop.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    fn read(&mut self, stop: &CancellationToken, backoff: &mut Backoff) -> anyhow::Result<()> {
        let mut config = self.kafka.consumer(&format!("{}.feed", self.topic));
        config.set("enable.partition.eof", "true").set("topic.metadata.refresh.interval.ms", "30000");
        let consumer =
            BaseConsumer::from_config_and_context(&config, LogContext::default()).context("make a consumer")?;
        let partitions = count_partitions(&consumer, &self.topic)?;
        self.locate(&consumer, partitions)?;
        let mut assignment = TopicPartitionList::new();
        for (partition, position) in &self.positions {
            assignment.add_partition_offset(&self.topic, *partition, Offset::Offset(*position))?;
        }
        consumer.assign(&assignment).context("assign the notifications' partitions")?;

        let mut refresh = Instant::now() + REFRESH;
        while !stop.is_cancelled() {
            match consumer.poll(self.poll_timeout()) {
                None => self.cut_if_due(Duration::ZERO),
                Some(Ok(record)) => {
                    backoff.reset();
                    self.take(&record);
                    self.cut_if_due(GATHER);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => self.passed(partition),
                Some(Err(KafkaError::MessageConsumption(Code::AutoOffsetReset))) => return self.handle_lost_position(),
                Some(Err(error)) if kafka::is_transient(&error) => {}
                Some(Err(error)) => return Err(error).context("read the notifications"),
            }
            if Instant::now() >= refresh {
                ensure!(
                    count_partitions(&consumer, &self.topic)? == partitions,
                    "{} has grown by a partition",
                    self.topic
                );
                refresh = Instant::now() + REFRESH;
            }
        }
        Ok(())
    }

    /// Determines the position of each partition that has none yet.
    fn locate(&mut self, consumer: &BaseConsumer<LogContext>, partitions: i32) -> anyhow::Result<()> {
        if !self.positions.is_empty() {
            // All of a partition that was added is new.
            for partition in 0..partitions {
                self.positions.entry(partition).or_insert(0);
            }
            return Ok(());
        }
        let (mut beginning, mut positions) = (Beginning::default(), BTreeMap::new());
        for partition in 0..partitions {
            let ends = consumer.fetch_watermarks(&self.topic, partition, CALL_TIMEOUT).context("read the ends")?;
            let (start, end) = ends;
            positions.insert(partition, start.max(end - SHOWN as i64));
            beginning.ends.insert(partition, end);
            if start < end {
                beginning.unread.insert(partition);
            }
        }
        self.positions = positions;
        self.beginning = Some(beginning);
        self.begin();
        Ok(())
    }

    fn take(&mut self, record: &BorrowedMessage<'_>) {
        let (partition, offset) = (record.partition(), record.offset());
        self.positions.insert(partition, offset + 1);
        self.lost = 0;
        let text = record.payload_view::<str>().and_then(Result::ok).unwrap_or_default();
        let old = self.beginning.as_ref().is_some_and(|beginning| beginning.is_before_end(partition, offset));
        match json::from_object::<Notification>(text.as_bytes()) {
            Ok(notification) => match &mut self.beginning {
                Some(beginning) if old => {
                    if let Some(shown) = Shown::new(&notification, text) {
                        beginning.latest.push(shown);
                    }
                }
                _ => {
                    if self.pending.is_empty() {
                        self.due = self.due.max(Instant::now());
                    }
                    self.pending.add(&notification, text, &self.feed.inner.map);
                }
            },
            Err(error) => tracing::debug!(partition, offset, %error, "not a notification: left out of the feed"),
        }
        if self.beginning.as_ref().is_some_and(|beginning| !beginning.is_before_end(partition, offset + 1)) {
            self.passed(partition);
        }
    }

    /// Notes that a partition is read up to the epoch. Its last offset may be a transaction marker instead of a record.
    fn passed(&mut self, partition: i32) {
        if let Some(beginning) = &mut self.beginning {
            beginning.unread.remove(&partition);
        }
        self.begin();
    }

    fn begin(&mut self) {
        if let Some(beginning) = self.beginning.take_if(|beginning| beginning.unread.is_empty()) {
            self.feed.begin(beginning.latest, std::mem::take(&mut self.gap));
        }
    }

    /// Handles a position outside of its log: retention overtook the tail, or the topic was recreated.
    fn handle_lost_position(&mut self) -> anyhow::Result<()> {
        self.lost += 1;
        if self.lost >= SIGHTINGS {
            tracing::warn!(topic = self.topic, "the feed has a gap: its position is no longer in the log");
            self.cut();
            self.lost = 0;
            self.positions.clear();
            self.gap = true;
        }
        bail!("a position is outside of its log")
    }

    /// Returns the time to wait for the next record, at most until a frame is due.
    fn poll_timeout(&self) -> Duration {
        if self.pending.is_empty() {
            POLL
        } else {
            kafka::poll_timeout(self.due.saturating_duration_since(Instant::now()))
        }
    }

    /// Cuts a frame that has been due for `grace`.
    fn cut_if_due(&mut self, grace: Duration) {
        if Instant::now() >= self.due + grace {
            self.cut();
        }
    }

    /// Cuts a frame, but not before the epoch begins: streams would not know what came before it.
    fn cut(&mut self) {
        if self.beginning.is_none() && !self.pending.is_empty() {
            self.feed.push(&std::mem::replace(&mut self.pending, Pending::new(&self.feed.inner.map)));
            self.due = Instant::now() + CUT;
        }
    }
}

/// Counts the partitions of the topic without polling, which would drop records that the consumer has fetched.
fn count_partitions(consumer: &BaseConsumer<LogContext>, topic: &str) -> anyhow::Result<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), CALL_TIMEOUT).context("read the topic's metadata")?;
    Ok(reader::count_partitions(&metadata, topic)?)
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        ClientConfig,
        mocking::MockCluster,
        producer::{BaseProducer, BaseRecord, Producer},
    };

    use super::*;

    const TOPIC: &str = "orders.notifications";
    const RECORDS: i64 = 5;

    /// Uses librdkafka's mock broker: it needs records that were fetched and not read, which no real broker shows.
    #[test]
    fn counting_partitions_drops_no_record() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers());
        let producer: BaseProducer = config.create().unwrap();
        for _ in 0..RECORDS {
            producer.send(BaseRecord::<(), str>::to(TOPIC).partition(0).payload("{}")).unwrap();
        }
        producer.flush(Duration::from_secs(60)).unwrap();

        config.set("group.id", "feed");
        let consumer: BaseConsumer<LogContext> = config.create_with_context(LogContext::default()).unwrap();
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(TOPIC, 0, Offset::Offset(0)).unwrap();
        consumer.assign(&assignment).unwrap();
        for expected in 0..RECORDS {
            assert_eq!(count_partitions(&consumer, TOPIC).unwrap(), 1);
            // A poll also ends without a record, for other events of the client.
            let deadline = Instant::now() + Duration::from_secs(60);
            let record = std::iter::repeat_with(|| consumer.poll(POLL))
                .find(|polled| polled.is_some() || Instant::now() > deadline)
                .flatten();
            assert_eq!(record.expect("a record in time").unwrap().offset(), expected);
        }
    }
}
