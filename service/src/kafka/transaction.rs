//! One Kafka transaction: records and the offsets they came from, all or nothing. Knows what each kind of error asks for.
//! Used by the consumer's pipeline and by the replay of dead letters.

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

/// Longest wait inside of one call; then it is called again, which goes on with what is under way.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for one step. The broker has given a transaction up after 10 s and needs at most 10 s more to notice, so
/// whoever waits longer than that waits for the broker itself, and does that better with new clients.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same once the process is to stop: then the transaction's successor settles what is open.
const PATIENCE_WHEN_STOPPING: Duration = Duration::from_secs(5);
/// Longest wait for offsets to be taken, which librdkafka itself does not bound (see [`offsets`]).
const OFFSETS_PATIENCE: Duration = Duration::from_secs(15);
/// Longer than `message.timeout.ms`, after which librdkafka itself gives a record up.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(15);

/// A record to write.
pub struct Outgoing<'record> {
    pub topic: &'record str,
    pub partition: i32,
    pub key: Option<&'record [u8]>,
    pub value: Option<&'record [u8]>,
    pub headers: Option<OwnedHeaders>,
}

#[derive(Debug)]
pub enum Failure {
    /// Nothing of it counts, and another may begin.
    Aborted(Cause),
    /// The producer is dead, or the outcome unknown. A new producer of the same transactional id settles it.
    Broken(String),
    /// The producer is dead because a newer one of the same transactional id is there.
    Fenced(String),
}

/// Why a transaction had to be aborted.
#[derive(Clone, Debug)]
pub struct Cause {
    pub reason: String,
    /// The topic that refused a record as too large.
    pub too_large_for: Option<String>,
}

/// The producer of transactions of one role, initialized.
pub struct Transactions {
    producer: Arc<BaseProducer<Deliveries>>,
    offsets: OffsetSender,
    stop: CancellationToken,
    waiting: Box<dyn Fn(&str) + Send>,
}

impl Transactions {
    /// Fences every earlier producer of the same transactional id and settles the transaction it left open, if any.
    /// `waiting` is told of every error that is waited out.
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
        let opened = transactions.insist("init_transactions", || transactions.producer.init_transactions(CALL_TIMEOUT));
        match opened {
            Ok(()) => Ok(transactions),
            Err(stopped) => Err(stopped.reason()),
        }
    }

    /// Writes `records` and commits `offsets` for `group`, or neither.
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
                match self.insist("abort_transaction", || self.producer.abort_transaction(CALL_TIMEOUT / 4)) {
                    Ok(()) => Err(Failure::Aborted(cause)),
                    Err(Stopped::Fenced(reason)) => Err(Failure::Fenced(reason)),
                    Err(stopped) => Err(Failure::Broken(format!("{}, after {}", stopped.reason(), cause.reason))),
                }
            }
        }
    }

    /// Serves what librdkafka has to tell while there is nothing to write.
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
        producer.context().forget();
        self.insist("begin_transaction", || producer.begin_transaction())?;
        for record in records {
            self.send(&record)?;
        }
        self.deliver()?;
        reached("consumer::after-produce");
        if !defect("consumer::commits-offsets-apart") {
            self.send_offsets(offsets, group)?;
        }
        reached("consumer::before-commit");
        // One that timed out may have been committed. Asking again tells; aborting could only guess.
        self.insist("commit_transaction", || producer.commit_transaction(CALL_TIMEOUT))?;
        reached("consumer::after-commit");
        Ok(())
    }

    fn send(&self, record: &Outgoing<'_>) -> Result<(), Stopped> {
        let deadline = Instant::now() + DELIVERY_PATIENCE;
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

    /// Waits until all that was sent is delivered, or one record is not: librdkafka keeps back the rest of a transaction
    /// that has failed until it times out, and by then the broker has given the transaction up.
    fn deliver(&self) -> Result<(), Stopped> {
        let began = Instant::now();
        loop {
            let delivered = drain(&self.producer, Instant::now() + Duration::from_millis(100));
            if let Some(cause) = self.producer.context().failed() {
                return Err(Stopped::Abort(cause));
            }
            let reason = "not everything was delivered in time";
            match began.elapsed() {
                _ if delivered => return Ok(()),
                waited if waited >= DELIVERY_PATIENCE.min(self.patience()) => return Err(Stopped::abort(reason)),
                waited if waited >= CALL_TIMEOUT => (self.waiting)(reason),
                _ => {}
            }
        }
    }

    fn send_offsets(&self, offsets: &TopicPartitionList, group: &Arc<ConsumerGroupMetadata>) -> Result<(), Stopped> {
        const STEP: &str = "send_offsets_to_transaction";
        // Of the whole step: a call that begins late is left behind the sooner.
        let began = Instant::now();
        self.insist_on(STEP, || {
            self.offsets.send(offsets.clone(), group.clone());
            loop {
                let reason = format!("{STEP}: the group's coordinator does not answer");
                match (self.offsets.answer(), began.elapsed()) {
                    (Some(answer), _) => return Ok(answer),
                    (None, waited) if waited >= OFFSETS_PATIENCE.min(self.patience()) => {
                        return Err(Stopped::Broken(reason));
                    }
                    (None, waited) if waited >= CALL_TIMEOUT => (self.waiting)(&reason),
                    (None, _) => {}
                }
            }
        })
    }

    /// Calls until it is done, or until its error is one that calling again does not help.
    fn insist(&self, step: &str, call: impl Fn() -> KafkaResult<()>) -> Result<(), Stopped> {
        self.insist_on(step, || Ok(call()))
    }

    /// The same for a call that may not come back at all.
    fn insist_on(&self, step: &str, call: impl Fn() -> Result<KafkaResult<()>, Stopped>) -> Result<(), Stopped> {
        let began = Instant::now();
        loop {
            let Err(error) = call()? else { return Ok(()) };
            // What is behind a timeout is among the events, which only a poll hands over.
            let trouble = self.producer.context().last_error.get();
            let reason = format!("{step}: {}", explain(&error, trouble.as_ref()));
            match TransactionError::from_kafka(&error) {
                _ if is_fenced(&error) => return Err(Stopped::Fenced(reason)),
                TransactionError::Abortable => return Err(Stopped::abort(&reason)),
                TransactionError::Retriable if began.elapsed() < self.patience() => {
                    (self.waiting)(&reason);
                    // Delivery reports that nobody serves would keep an abort waiting for ever.
                    self.producer.poll(Duration::from_millis(20));
                }
                TransactionError::Retriable | TransactionError::Fatal => return Err(Stopped::Broken(reason)),
            }
        }
    }

    fn patience(&self) -> Duration {
        if self.stop.is_cancelled() { PATIENCE_WHEN_STOPPING } else { PATIENCE }
    }
}

/// Where an attempt stopped, and so what to do next.
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

/// Whether a newer producer of the same transactional id is why.
fn is_fenced(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced))
}

impl Cause {
    fn new(error: &KafkaError, topic: &str) -> Self {
        let too_large = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
        Self { reason: format!("write to {topic}: {error}"), too_large_for: too_large.then(|| topic.to_owned()) }
    }
}

/// Remembers the first record of a transaction that was not delivered.
#[derive(Default)]
struct Deliveries {
    failed: Mutex<Option<Cause>>,
    last_error: LastError,
}

impl Deliveries {
    fn forget(&self) {
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

    /// On librdkafka's own simulation of brokers: of a real one that wakes up from a freeze, a client loses sight only if it
    /// asks in the few milliseconds in which the cluster has no broker.
    #[test]
    fn a_coordinator_that_never_answers_breaks_the_producer_and_the_next_goes_on() {
        // The defect itself is a call that does not come back.
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            lose_the_coordinator();
            done.send(())
        });
        ended.recv_timeout(Duration::from_secs(60)).expect("it ends in time, and without a panic");
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
        stop.cancel(); // The shorter of the two patiences.
        let failure = run(&transactions, 2).unwrap_err();
        assert!(matches!(&failure, Failure::Broken(reason) if reason.contains("does not answer")), "{failure:?}");
        drop(transactions);

        cluster.broker_up(2).unwrap();
        let transactions = Transactions::open(&config, CancellationToken::new(), |_| {}).unwrap();
        run(&transactions, 2).unwrap();
    }
}
