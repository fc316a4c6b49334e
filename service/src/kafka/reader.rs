//! Reads topics without joining a group: the partitions, their first and last offsets, a group's committed offsets, and
//! the committed records between two offsets. Each call has a deadline.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code},
    message::BorrowedMessage,
    metadata::Metadata,
};

use super::{HasLastError, LogContext, explain, fetch_metadata, poll_timeout};

/// The pause before a failed call is repeated.
const RETRY: Duration = Duration::from_millis(200);

/// The longest wait for a record before the deadline is checked.
const POLL: Duration = Duration::from_millis(100);

/// The first offset to read, and the one behind the last, by partition.
pub type Ranges = BTreeMap<i32, (i64, i64)>;

/// A client that reads topics: only committed records, unless its configuration sets another isolation level.
pub struct Reader {
    consumer: BaseConsumer<LogContext>,
}

/// The deadline of the calls to Kafka.
#[derive(Clone, Copy, Debug)]
pub enum Deadline {
    /// A point in time. A failed call is not repeated. For requests, which their clients can repeat.
    At(Instant),
    /// The longest time without progress within one call, or one wait for a record. A failed call is repeated, whatever
    /// failed, except the one for the partitions of a topic. For commands, which a person can end.
    Idle(Duration),
}

/// A failed call. Its text has no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("topic {0} does not exist: run orderflow-provision")]
    Missing(String),
    /// Kafka refused the call. `action` is a verb and its object.
    #[error("cannot {action}: {reason}")]
    Refused { action: String, reason: String, code: Option<Code> },
    #[error("cannot {action}: {reason}")]
    TimedOut { action: String, reason: String },
}

/// The records of ranges, in order within each partition.
pub struct Records<'reader> {
    reader: &'reader Reader,
    topic: String,
    /// The ends of the ranges that are not yet read to their end.
    unread: BTreeMap<i32, i64>,
    deadline: Deadline,
    waits_out_failures: bool,
}

impl Deadline {
    /// The longest wait for the answer to one call.
    const CALL: Duration = Duration::from_secs(10);

    /// Returns the timeout of the next call. It is never zero, which would mean librdkafka's default.
    pub fn call(self) -> Duration {
        match self {
            Self::At(end) => {
                let left = end.saturating_duration_since(Instant::now());
                Self::CALL.min(left).max(Duration::from_millis(10))
            }
            Self::Idle(_) => Self::CALL,
        }
    }

    fn is_over(self, progressed: Instant) -> bool {
        match self {
            Self::At(end) => Instant::now() >= end,
            Self::Idle(longest) => progressed.elapsed() > longest,
        }
    }

    fn repeats(self) -> bool {
        matches!(self, Self::Idle(_))
    }
}

impl Reader {
    /// Creates a client. librdkafka needs a `group.id` in `config`; the committed offsets of that group can be read.
    pub fn new(mut config: ClientConfig) -> KafkaResult<Self> {
        config.set("enable.partition.eof", "true");
        Ok(Self { consumer: config.create_with_context(LogContext::default())? })
    }

    /// Returns the client, for calls that this type lacks.
    pub fn consumer(&self) -> &BaseConsumer<LogContext> {
        &self.consumer
    }

    /// Returns the number of partitions of a topic. Call it first, because its error explains best why Kafka cannot be
    /// used.
    pub fn partitions(&self, topic: &str, deadline: Deadline) -> Result<i32, Error> {
        partitions(&self.consumer, topic, deadline.call())
    }

    /// Returns the first offset of a partition, and the one behind its last readable record.
    pub fn extent(&self, topic: &str, partition: i32, deadline: Deadline) -> Result<(i64, i64), Error> {
        let action = || format!("read the offsets of {topic}/{partition}");
        self.call(deadline, action, |timeout| self.consumer.fetch_watermarks(topic, partition, timeout))
    }

    /// Returns, by partition, the first offset whose record is not older than a Unix time. Partitions without such a
    /// record are missing.
    pub fn offsets_since(
        &self,
        topic: &str,
        partitions: i32,
        milliseconds: i64,
        deadline: Deadline,
    ) -> Result<BTreeMap<i32, i64>, Error> {
        let times = list(topic, (0..partitions).map(|partition| (partition, milliseconds.max(0))));
        let action = || format!("find the offsets of {topic} by time");
        self.call(deadline, action, |timeout| offsets(&self.consumer.offsets_for_times(times.clone()?, timeout)?))
    }

    /// Returns the group's committed offsets by partition. Partitions without one are missing.
    pub fn committed(&self, topic: &str, partitions: i32, deadline: Deadline) -> Result<BTreeMap<i32, i64>, Error> {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_range(topic, 0, partitions - 1);
        let action = || format!("read the committed offsets of {topic}");
        self.call(deadline, action, |timeout| offsets(&self.consumer.committed_offsets(wanted.clone(), timeout)?))
    }

    /// Starts to read these ranges. A second read ends the first.
    pub fn read(&self, topic: &str, ranges: &Ranges, deadline: Deadline) -> Result<Records<'_>, Error> {
        let ranges = || ranges.iter().filter(|(_, (start, end))| start < end);
        let records = Records {
            reader: self,
            topic: topic.to_owned(),
            unread: ranges().map(|(partition, (_, end))| (*partition, *end)).collect(),
            deadline,
            waits_out_failures: true,
        };
        if !records.is_done() {
            let assigned = list(topic, ranges().map(|(partition, (start, _))| (*partition, *start)))
                .and_then(|starts| self.consumer.assign(&starts));
            assigned.map_err(|error| self.refused(format!("start to read {topic}"), &error))?;
        }
        Ok(records)
    }

    /// Calls Kafka, and repeats a failed call if the deadline allows it.
    fn call<T>(
        &self,
        deadline: Deadline,
        action: impl Fn() -> String,
        mut call: impl FnMut(Duration) -> KafkaResult<T>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        loop {
            match call(deadline.call()) {
                Ok(answer) => return Ok(answer),
                Err(_) if deadline.repeats() && !deadline.is_over(began) => thread::sleep(RETRY),
                Err(error) => return Err(self.refused(action(), &error)),
            }
        }
    }

    fn refused(&self, action: String, error: &KafkaError) -> Error {
        let reason = explain(error, self.consumer.context().last_error().get().as_ref());
        Error::Refused { action, reason, code: error.rdkafka_error_code() }
    }
}

impl<'reader> Records<'reader> {
    /// Ends the read at any failure of Kafka, even one that librdkafka recovers from.
    #[must_use]
    pub fn fail_fast(mut self) -> Self {
        self.waits_out_failures = false;
        self
    }

    /// Returns true if every range is read to its end.
    pub fn is_done(&self) -> bool {
        self.unread.is_empty()
    }

    /// Returns the partitions whose ranges are not yet read to their end.
    pub fn unread(&self) -> impl Iterator<Item = i32> {
        self.unread.keys().copied()
    }

    /// Polls for the next record. The end of a partition, as librdkafka reports it, ends a range only if the position
    /// has reached the end of the range: a newly elected leader serves reads only up to a lower high-water mark, until
    /// its followers have answered.
    fn poll(&mut self) -> Result<Option<BorrowedMessage<'reader>>, Error> {
        let consumer = &self.reader.consumer;
        // The caller's work between two records is no wait.
        let mut progressed = Instant::now();
        while !self.is_done() {
            if self.deadline.is_over(progressed) {
                return Err(self.timed_out());
            }
            match consumer.poll(poll_timeout(self.deadline.call().min(POLL))) {
                Some(Ok(record)) => {
                    let (partition, offset) = (record.partition(), record.offset());
                    let Some(end) = self.unread.get(&partition).copied() else { continue };
                    progressed = Instant::now();
                    if offset + 1 >= end {
                        self.unread.remove(&partition);
                    }
                    if offset < end {
                        return Ok(Some(record));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    progressed = Instant::now();
                    let reached = self.reached(partition)?;
                    self.unread.retain(|unread, end| *unread != partition || reached < *end);
                }
                Some(Err(error)) if self.waits_out_failures && is_transient(&error) => {}
                Some(Err(error)) => return Err(self.reader.refused(format!("read {}", self.topic), &error)),
                None => {}
            }
        }
        Ok(None)
    }

    /// Returns the offset behind the last one read. It counts transaction markers, which are not delivered as records.
    fn reached(&self, partition: i32) -> Result<i64, Error> {
        let position = self.reader.consumer.position();
        let position = position.map_err(|error| self.reader.refused(format!("read {}", self.topic), &error))?;
        let found = position.find_partition(&self.topic, partition).map(|found| found.offset());
        Ok(if let Some(Offset::Offset(offset)) = found { offset } else { 0 })
    }

    fn timed_out(&self) -> Error {
        let reason = match self.reader.consumer.context().last_error().get() {
            Some(cause) => format!("Kafka cannot be used: {cause}"),
            None => {
                let left: Vec<_> =
                    self.unread.iter().map(|(partition, end)| format!("partition {partition} to {end}")).collect();
                format!("not read in time: {}", left.join(", "))
            }
        };
        Error::TimedOut { action: format!("read {}", self.topic), reason }
    }
}

impl<'reader> Iterator for Records<'reader> {
    type Item = Result<BorrowedMessage<'reader>, Error>;

    /// Waits for the next record. Returns `None` once every range is read to its end.
    fn next(&mut self) -> Option<Self::Item> {
        self.poll().transpose()
    }
}

impl Drop for Records<'_> {
    fn drop(&mut self) {
        // If this fails, the next read fails as well.
        let _ = self.reader.consumer.unassign();
    }
}

impl Error {
    /// Returns the code of a call that Kafka refused.
    pub fn code(&self) -> Option<Code> {
        if let Self::Refused { code, .. } = self { *code } else { None }
    }
}

/// Converts an error to its text, for functions with text as errors.
impl From<Error> for String {
    fn from(error: Error) -> Self {
        error.to_string()
    }
}

/// Returns the number of partitions of a topic. The consumer must read nothing yet; see [`fetch_metadata`].
pub fn partitions<C: ConsumerContext + HasLastError>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    timeout: Duration,
) -> Result<i32, Error> {
    let metadata = fetch_metadata(consumer, topic, timeout)
        .map_err(|unanswered| Error::TimedOut { action: reading_partitions(topic), reason: unanswered.to_string() })?;
    count_partitions(&metadata, topic)
}

/// Returns the number of partitions of a topic in the brokers' answer.
pub fn count_partitions(metadata: &Metadata, topic: &str) -> Result<i32, Error> {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    match found.map(|found| (found.error().map(Code::from), found.partitions().len())) {
        Some((None, count)) if count > 0 => Ok(count as i32),
        None | Some((None | Some(Code::UnknownTopicOrPartition | Code::UnknownTopic), _)) => {
            Err(Error::Missing(topic.to_owned()))
        }
        Some((Some(code), _)) => {
            Err(Error::Refused { action: reading_partitions(topic), reason: code.to_string(), code: Some(code) })
        }
    }
}

fn reading_partitions(topic: &str) -> String {
    format!("read the partitions of {topic}")
}

/// Returns true if librdkafka recovers from this error of a poll.
pub fn is_transient(error: &KafkaError) -> bool {
    matches!(
        error,
        KafkaError::MessageConsumption(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::OperationTimedOut)
    )
}

fn list(topic: &str, offsets: impl IntoIterator<Item = (i32, i64)>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    }
    Ok(list)
}

/// Returns the offsets of the partitions that have one.
fn offsets(list: &TopicPartitionList) -> KafkaResult<BTreeMap<i32, i64>> {
    let mut offsets = BTreeMap::new();
    for found in list.elements() {
        found.error()?;
        if let Offset::Offset(offset) = found.offset() {
            offsets.insert(found.partition(), offset);
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        mocking::MockCluster,
        producer::{BaseProducer, BaseRecord, Producer},
    };

    use super::*;

    const TOPIC: &str = "orders";

    /// Uses librdkafka's mock brokers, because a real cluster does not elect a leader with a lagging high-water mark on
    /// demand.
    #[test]
    fn the_end_of_a_partition_does_not_end_a_range_that_goes_further() {
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
        let write = |key: &str| {
            producer.send(BaseRecord::to(TOPIC).partition(0).key(key).payload("")).unwrap();
            producer.flush(Duration::from_secs(60)).unwrap();
        };
        let reader = Reader::new(config(&[("group.id", "reader")])).unwrap();
        let read = |range, seconds| {
            let deadline = Deadline::At(Instant::now() + Duration::from_secs(seconds));
            let records = reader.read(TOPIC, &Ranges::from([(0, range)]), deadline)?;
            let key = |record: BorrowedMessage<'_>| String::from_utf8_lossy(record.key().unwrap()).into_owned();
            records.map(|record| record.map(key)).collect::<Result<Vec<_>, _>>()
        };

        write("a");
        write("b");
        assert_eq!(read((0, 2), 60).unwrap(), ["a", "b"]);
        let error = read((0, 3), 1).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        write("c");
        assert_eq!(read((0, 3), 60).unwrap(), ["a", "b", "c"]);
        assert_eq!(read((1, 2), 60).unwrap(), ["b"]);
        assert_eq!(read((2, 2), 60).unwrap(), [""; 0]);
    }
}
