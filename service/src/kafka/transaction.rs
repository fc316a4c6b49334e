//! Kafka transactions that write records and commit the offsets of their sources, and handle each kind of error. Used
//! by the consumer's pipeline and by the replay of dead letters.

mod offsets;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{DeliveryResult, Message, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};

use offsets::OffsetSender;

use super::{LastError, TransactionError, drain, explain};
use crate::{
    failpoint::{defect, reached},
    shutdown::CancellationToken,
};

/// The longest wait inside of one call of librdkafka. The next call continues the pending operation.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest wait for one step. The broker aborts a transaction after 10 s and takes at most 10 s more to notice, so
/// a longer wait is due to the broker itself, and new clients handle that better.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest wait for one step of a process that stops. Its successor then settles the open transaction.
const STOPPING_STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait for the step that sends the offsets, which librdkafka does not bound (see [`offsets`]).
const OFFSETS_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest wait for deliveries. It is longer than `message.timeout.ms`, after which librdkafka drops a record.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(15);

/// A record to write.
pub struct Outgoing<'record> {
    pub topic: &'record str,
    pub partition: i32,
    pub key: Option<&'record [u8]>,
    pub value: Option<&'record [u8]>,
    pub headers: Option<OwnedHeaders>,
}

/// The outcome of a transaction that was not committed.
#[derive(Debug)]
pub enum Failure {
    /// The transaction was aborted, and another one may begin.
    Aborted(Cause),
    /// The producer is dead, or the outcome unknown. A new producer with the same transactional id settles it.
    Broken(String),
    /// A newer producer with the same transactional id has fenced this one.
    Fenced(String),
}

impl Failure {
    pub fn reason(&self) -> &str {
        match self {
            Self::Aborted(cause) => &cause.reason,
            Self::Broken(reason) | Self::Fenced(reason) => reason,
        }
    }
}

/// The reason of an abort.
#[derive(Clone, Debug)]
pub struct Cause {
    pub reason: String,
    /// The topic that refused a record as too large.
    pub too_large_for: Option<String>,
}

/// An initialized producer of transactions.
pub struct Transactions {
    producer: Arc<BaseProducer<Deliveries>>,
    offsets: OffsetSender,
    stop: CancellationToken,
    waiting: Box<dyn Fn(&str) + Send>,
}

impl Transactions {
    /// Fences every earlier producer with the same transactional id, and settles its open transaction. Calls `waiting`
    /// with each error that is waited out.
    pub fn open(
        config: &ClientConfig,
        stop: CancellationToken,
        waiting: impl Fn(&str) + Send + 'static,
    ) -> Result<Self, String> {
        let producer: BaseProducer<_> =
            config.create_with_context(Deliveries::default()).map_err(|error| error.to_string())?;
        let producer = Arc::new(producer);
        let offsets = OffsetSender::start(producer.clone()).map_err(|error| format!("start a thread: {error}"))?;
        let transactions = Self { producer, offsets, stop, waiting: Box::new(waiting) };
        let opened = transactions.retry("init_transactions", || transactions.producer.init_transactions(CALL_TIMEOUT));
        match opened {
            Ok(()) => Ok(transactions),
            Err(stopped) => Err(stopped.reason()),
        }
    }

    /// Writes `records` and commits `offsets` for `group`, or does neither.
    pub fn run<'record>(
        &self,
        records: impl IntoIterator<Item = Outgoing<'record>>,
        offsets: &TopicPartitionList,
        group: &Arc<ConsumerGroupMetadata>,
    ) -> Result<(), Failure> {
        match self.attempt(records, offsets, group) {
            Ok(()) => Ok(()),
            Err(Stopped::Broken(reason)) => Err(Failure::Broken(reason)),
            Err(Stopped::Fenced(reason)) => Err(Failure::Fenced(reason)),
            Err(Stopped::Abort(cause)) => {
                tracing::debug!(reason = cause.reason, "aborting");
                match self.retry("abort_transaction", || self.producer.abort_transaction(CALL_TIMEOUT / 4)) {
                    Ok(()) => Err(Failure::Aborted(cause)),
                    Err(Stopped::Fenced(reason)) => Err(Failure::Fenced(reason)),
                    Err(stopped) => Err(Failure::Broken(format!("{}, after {}", stopped.reason(), cause.reason))),
                }
            }
        }
    }

    /// Serves librdkafka's events while no transaction runs.
    pub fn idle(&self) {
        self.producer.poll(Duration::ZERO);
    }

    fn attempt<'record>(
        &self,
        records: impl IntoIterator<Item = Outgoing<'record>>,
        offsets: &TopicPartitionList,
        group: &Arc<ConsumerGroupMetadata>,
    ) -> Result<(), Stopped> {
        let producer = &self.producer;
        producer.context().clear();
        self.retry("begin_transaction", || producer.begin_transaction())?;
        for record in records {
            self.send(&record)?;
        }
        self.deliver()?;
        reached("consumer::after-produce");
        if !defect("consumer::commits-offsets-apart") {
            self.send_offsets(offsets, group)?;
        }
        reached("consumer::before-commit");
        // A commit that timed out may have succeeded. Only another call returns the outcome; an abort could not.
        self.retry("commit_transaction", || producer.commit_transaction(CALL_TIMEOUT))?;
        reached("consumer::after-commit");
        Ok(())
    }

    fn send(&self, record: &Outgoing<'_>) -> Result<(), Stopped> {
        let deadline = Instant::now() + DELIVERY_TIMEOUT;
        loop {
            let mut sent = BaseRecord::<[u8], [u8]>::to(record.topic).partition(record.partition);
            sent.key = record.key;
            sent.payload = record.value;
            sent.headers.clone_from(&record.headers);
            match self.producer.send(sent) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) if Instant::now() < deadline => {
                    self.producer.poll(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(Stopped::Abort(Cause::new(&error, record.topic))),
            }
        }
    }

    /// Waits until all records are delivered, or one delivery fails. After a failure, librdkafka holds the rest of the
    /// transaction back until it times out, and by then the broker has aborted the transaction.
    fn deliver(&self) -> Result<(), Stopped> {
        let began = Instant::now();
        loop {
            let delivered = drain(&self.producer, Instant::now() + Duration::from_millis(100));
            if let Some(cause) = self.producer.context().failed() {
                return Err(Stopped::Abort(cause));
            }
            let reason = "not all records were delivered in time";
            match began.elapsed() {
                _ if delivered => return Ok(()),
                waited if waited >= DELIVERY_TIMEOUT.min(self.step_timeout()) => return Err(Stopped::abort(reason)),
                waited if waited >= CALL_TIMEOUT => (self.waiting)(reason),
                _ => {}
            }
        }
    }

    fn send_offsets(&self, offsets: &TopicPartitionList, group: &Arc<ConsumerGroupMetadata>) -> Result<(), Stopped> {
        const STEP: &str = "send_offsets_to_transaction";
        // Bounds the whole step, so a call that begins late is abandoned earlier.
        let began = Instant::now();
        self.retry_unless_stopped(STEP, || {
            self.offsets.send(offsets.clone(), group.clone());
            loop {
                let reason = format!("{STEP}: the group's coordinator does not answer");
                match (self.offsets.answer(), began.elapsed()) {
                    (Some(answer), _) => return Ok(answer),
                    (None, waited) if waited >= OFFSETS_TIMEOUT.min(self.step_timeout()) => {
                        return Err(Stopped::Broken(reason));
                    }
                    (None, waited) if waited >= CALL_TIMEOUT => (self.waiting)(&reason),
                    (None, _) => {}
                }
            }
        })
    }

    /// Repeats a call until it succeeds, its error is final, or the step times out.
    fn retry(&self, step: &str, call: impl Fn() -> KafkaResult<()>) -> Result<(), Stopped> {
        self.retry_unless_stopped(step, || Ok(call()))
    }

    /// Repeats a call as [`retry`](Self::retry) does. The call itself may stop the attempt.
    fn retry_unless_stopped(
        &self,
        step: &str,
        call: impl Fn() -> Result<KafkaResult<()>, Stopped>,
    ) -> Result<(), Stopped> {
        let began = Instant::now();
        loop {
            let Err(error) = call()? else { return Ok(()) };
            // The cause of a timeout is in the events, which only a poll delivers.
            let cause = self.producer.context().last_error.get();
            let reason = format!("{step}: {}", explain(&error, cause.as_ref()));
            match TransactionError::from_kafka(&error) {
                _ if is_fenced(&error) => return Err(Stopped::Fenced(reason)),
                TransactionError::Abortable => return Err(Stopped::abort(&reason)),
                TransactionError::Retriable if began.elapsed() < self.step_timeout() => {
                    (self.waiting)(&reason);
                    // Without polling for delivery reports, an abort would wait forever.
                    self.producer.poll(Duration::from_millis(20));
                }
                TransactionError::Retriable | TransactionError::Fatal => return Err(Stopped::Broken(reason)),
            }
        }
    }

    fn step_timeout(&self) -> Duration {
        if self.stop.is_cancelled() { STOPPING_STEP_TIMEOUT } else { STEP_TIMEOUT }
    }
}

/// A reason to end an attempt, which decides the next step.
enum Stopped {
    Abort(Cause),
    Broken(String),
    Fenced(String),
}

impl Stopped {
    fn abort(reason: &str) -> Self {
        Self::Abort(Cause { reason: reason.to_owned(), too_large_for: None })
    }

    fn reason(self) -> String {
        match self {
            Self::Abort(Cause { reason, .. }) | Self::Broken(reason) | Self::Fenced(reason) => reason,
        }
    }
}

/// Returns true if a newer producer with the same transactional id caused the error.
fn is_fenced(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced))
}

impl Cause {
    fn new(error: &KafkaError, topic: &str) -> Self {
        let too_large = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
        Self { reason: format!("write to {topic}: {error}"), too_large_for: too_large.then(|| topic.to_owned()) }
    }
}

/// A context that remembers the first failed delivery of a transaction.
#[derive(Default)]
struct Deliveries {
    failed: Mutex<Option<Cause>>,
    last_error: LastError,
}

impl Deliveries {
    fn clear(&self) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn failed(&self) -> Option<Cause> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, record)) = result {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| Cause::new(error, record.topic()));
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka producer");
        self.last_error.record_line(message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka producer");
        self.last_error.record(&error, reason);
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{
        Offset,
        consumer::{BaseConsumer, Consumer},
        mocking::{MockCluster, MockCoordinator},
    };

    use super::*;

    /// Uses librdkafka's mock brokers: a client loses a real broker that resumes after a freeze only if it fetches the
    /// metadata in the few milliseconds in which the cluster has no broker.
    #[test]
    fn a_coordinator_that_never_answers_breaks_the_producer_and_the_next_one_works() {
        // In a thread, because the bug is a call that never returns.
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            lose_the_coordinator();
            done.send(())
        });
        ended.recv_timeout(Duration::from_secs(60)).expect("ends in time, and without a panic");
    }

    fn lose_the_coordinator() {
        let cluster = MockCluster::new(2).unwrap();
        for topic in ["source", "target"] {
            cluster.create_topic(topic, 1, 1).unwrap();
            cluster.partition_leader(topic, 0, Some(1)).unwrap();
        }
        cluster.coordinator(MockCoordinator::Transaction("role".to_owned()), 1).unwrap();
        cluster.coordinator(MockCoordinator::Group("group".to_owned()), 2).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers()).set("transactional.id", "role");
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "group")
            .create()
            .unwrap();
        let group = Arc::new(consumer.group_metadata().unwrap());
        let run = |transactions: &Transactions, offset: i64| {
            let record = Outgoing { topic: "target", partition: 0, key: None, value: Some(b"value"), headers: None };
            let mut offsets = TopicPartitionList::new();
            offsets.add_partition_offset("source", 0, Offset::Offset(offset)).unwrap();
            transactions.run([record], &offsets, &group)
        };

        let stop = CancellationToken::new();
        let transactions = Transactions::open(&config, stop.clone(), |_| {}).unwrap();
        run(&transactions, 1).unwrap();
        cluster.broker_down(2).unwrap();
        stop.cancel(); // Selects the shorter timeout.
        let failure = run(&transactions, 2).unwrap_err();
        assert!(matches!(&failure, Failure::Broken(reason) if reason.contains("does not answer")), "{failure:?}");
        drop(transactions);

        cluster.broker_up(2).unwrap();
        let transactions = Transactions::open(&config, CancellationToken::new(), |_| {}).unwrap();
        run(&transactions, 2).unwrap();
    }
}
