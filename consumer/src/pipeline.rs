//! The exactly-once loop: gathers a batch, then writes its notifications, dead letters and offsets in one transaction.
//! It owns one consumer and one transactional producer, on its own thread. After any failure of Kafka the loop
//! continues from the committed offsets: it repeats a call, aborts and rewinds, or replaces both clients.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use orderflow_core::{Timestamp, Topics, event};
use orderflow_dead_letters::{DeadLetter, letter};
use orderflow_service::{
    Backoff, Dependency,
    failpoint::{self, defect},
    kafka::{
        HasLastError,
        transaction::{Failure, Outgoing, Transactions},
    },
    shutdown::CancellationToken,
    traces::{self, Context},
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaResult,
    message::{BorrowedMessage, Header, OwnedHeaders},
};

use crate::{
    Settings,
    batch::{self, Interruption, OffsetGuard},
    membership::{Assignment, Membership},
    metrics::{Metrics, OutcomeLabel, OutcomeValue, RejoinLabel, RejoinReason},
    position::{self, Group, LostPosition, Unresolved},
    record::{self, Outcome},
    spans::Spans,
    topics::Partitions,
};

/// The longest wait for an assignment before the process is unready.
const JOINING: Duration = Duration::from_secs(10);
/// The number of aborts in a row after which both clients are replaced, since only a rejoin may find the reason.
const MOST_ABORTS_IN_A_ROW: u32 = 3;
/// The smallest limit for dead letters, in bytes. A broker that refuses even these needs a person.
const SMALLEST_DEAD_LETTER_LIMIT: usize = 16 * 1024;
/// The largest batch that is sent, in bytes: librdkafka's default, which is below a topic's default limit.
const MOST_SENT_TOGETHER: usize = 1_000_000;

pub struct Pipeline {
    topics: Topics,
    group: Group,
    consumer: ClientConfig,
    producer: ClientConfig,
    log_notifications: bool,
    kafka: Dependency,
    metrics: Metrics,
    stop: CancellationToken,
    backoff: Backoff,
    /// The largest dead letter, in bytes. It shrinks when Kafka refuses one as too large, so that none blocks its
    /// partition forever.
    dead_letter_limit: usize,
}

/// A reason to drop both clients.
enum End {
    Rejoin(RejoinReason, String),
    Lost(LostPosition),
}

/// The outcomes of a batch.
struct Settled {
    outcomes: Vec<Outcome>,
    notified_at: Timestamp,
}

impl Pipeline {
    pub fn new(settings: Settings, kafka: Dependency, metrics: Metrics, stop: CancellationToken) -> Self {
        let mut consumer = settings.kafka.consumer(&settings.kafka_group_id);
        consumer
            .set("partition.assignment.strategy", "range")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "2000")
            // The longest time that the loop may need for one transaction and its abort.
            .set("max.poll.interval.ms", "90000");
        if defect("consumer::reads-uncommitted") {
            consumer.set("isolation.level", "read_uncommitted");
        }
        let mut producer = settings.kafka.transactional_producer(&settings.transactional_id());
        // A dead letter is larger than its record.
        producer.set("message.max.bytes", "2097152");
        Self {
            topics: Topics::named(&settings.kafka.kafka_topic),
            group: Group { name: settings.kafka_group_id, brokers: settings.kafka.kafka_brokers },
            consumer,
            producer,
            log_notifications: settings.log_notifications,
            kafka,
            metrics,
            stop,
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(5)),
            dead_letter_limit: letter::SIZE_LIMIT,
        }
    }

    /// Runs until it is stopped. Returns an error if a person has to decide.
    pub fn run(mut self) -> anyhow::Result<()> {
        failpoint::panics("consumer::pipeline", &self.group.name);
        while !self.stop.is_cancelled() {
            let ended = self.consume_as_member();
            self.metrics.assigned_partitions.set(0);
            match ended {
                Ok(()) => break,
                Err(End::Lost(lost)) => {
                    self.kafka.unusable(&lost);
                    return Err(lost.into());
                }
                Err(End::Rejoin(reason, cause)) => {
                    self.metrics.rejoins.get_or_create(&RejoinLabel { reason }).inc();
                    self.kafka.down(&cause);
                    tracing::debug!(?reason, cause, "rejoining the group with new clients");
                    self.pause();
                }
            }
        }
        Ok(())
    }

    /// Consumes as a member of the group until it is stopped, or until both clients have to be replaced.
    fn consume_as_member(&mut self) -> Result<(), End> {
        let kafka = self.kafka.clone();
        let mut config = self.producer.clone();
        // Kafka's limit applies to a batch, and librdkafka does not split a batch that was refused.
        config.set("batch.size", self.dead_letter_limit.min(MOST_SENT_TOGETHER).to_string());
        let transactions = Transactions::open(&config, self.stop.clone(), move |reason| kafka.down(reason));
        let transactions = transactions.map_err(|cause| End::Rejoin(RejoinReason::producer, cause))?;

        let consume = |error: &dyn ToString| End::Rejoin(RejoinReason::consume, error.to_string());
        let context = Membership::new(self.group.clone(), self.stop.clone());
        let consumer = Leaving(self.consumer.create_with_context(context).map_err(|error| consume(&error))?);
        let consumer = &consumer.0;
        let partitions =
            Partitions::fetch(&self.topics, consumer).map_err(|cause| End::Rejoin(RejoinReason::topics, cause))?;
        consumer.subscribe(&[&self.topics.orders]).map_err(|error| consume(&error))?;

        let (mut guard, mut rebalances, mut aborts, mut alone_since) = (OffsetGuard::default(), 0, 0, Instant::now());
        let mut last_batch = None;
        while !self.stop.is_cancelled() {
            let gathered = batch::gather(consumer, &mut guard, last_batch);
            let membership = consumer.context();
            match membership.take_failure() {
                Some(Unresolved::Lost(lost)) => return Err(End::Lost(lost)),
                Some(Unresolved::Unreadable(cause)) => return Err(End::Rejoin(RejoinReason::assignment, cause)),
                None => {}
            }
            let assignment = membership.assignment();
            if membership.rebalances() != rebalances {
                rebalances = membership.rebalances();
                guard = assignment.as_deref().map(OffsetGuard::new).unwrap_or_default();
                self.metrics.assigned_partitions.set(assignment.as_deref().map_or(0, |own| own.starts.len() as i64));
                alone_since = Instant::now();
            }
            let Some(assignment) = assignment else {
                if alone_since.elapsed() > JOINING {
                    let reason = membership.last_error().get().map(|error| error.to_string());
                    self.kafka.down(reason.unwrap_or_else(|| "waiting for an assignment of the group".to_owned()));
                }
                continue;
            };
            let batch = match gathered {
                Ok(batch) => batch,
                Err(Interruption::Broken(cause)) => return Err(End::Rejoin(RejoinReason::consume, cause)),
                Err(Interruption::OutOfLog) => return Err(self.out_of_log(consumer)),
            };
            if batch.is_empty() {
                transactions.idle();
                if aborts == 0 {
                    self.kafka.up();
                }
                continue;
            }
            last_batch = Some(Instant::now());
            match self.settle(&transactions, &batch, &assignment, partitions) {
                Ok(()) => {
                    if defect("consumer::commits-offsets-apart") {
                        let apart = offsets(&self.topics.orders, &batch::next_offsets(&batch));
                        let _ = apart.and_then(|apart| consumer.commit(&apart, CommitMode::Sync));
                    }
                    aborts = 0;
                    self.backoff.reset();
                    self.kafka.up();
                }
                Err(Failure::Broken(cause) | Failure::Fenced(cause)) => {
                    return Err(End::Rejoin(RejoinReason::transaction, cause));
                }
                Err(Failure::Aborted(cause)) => {
                    self.metrics.aborts.inc();
                    self.kafka.down(&cause.reason);
                    if cause.too_large_for.as_ref() == Some(&self.topics.dead_letters) {
                        self.cut_dead_letters();
                        return Err(End::Rejoin(RejoinReason::transaction, cause.reason));
                    }
                    aborts += 1;
                    if aborts == MOST_ABORTS_IN_A_ROW {
                        return Err(End::Rejoin(RejoinReason::transaction, cause.reason));
                    }
                    let first = batch::first_offsets(&batch);
                    drop(batch);
                    rewind(consumer, &self.topics.orders, &first).map_err(|error| consume(&error))?;
                    guard.rewind(&first);
                    self.pause();
                }
            }
        }
        Ok(())
    }

    /// Runs the transaction of one batch, then records its outcomes.
    fn settle(
        &self,
        transactions: &Transactions,
        batch: &[BorrowedMessage<'_>],
        assignment: &Assignment,
        partitions: Partitions,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let notified_at = Timestamp::now();
        let outcomes = batch.iter().map(|record| record::read(record, notified_at)).collect();
        let settled = Settled { outcomes, notified_at };
        let mut spans = Spans::start(batch, &self.topics.orders, &self.group.name);
        let settling = &mut spans;
        let outgoing =
            batch.iter().zip(&settled.outcomes).enumerate().map(move |(position, (record, outcome))| match outcome {
                Outcome::Notified { key, value, order_id, .. } => {
                    settling.order(position, order_id);
                    let traceparent = settling.publish(position, &self.topics.notifications, record.partition());
                    Outgoing {
                        topic: &self.topics.notifications,
                        partition: record.partition(),
                        key: Some(key.as_bytes()),
                        value: Some(value),
                        headers: traceparent.map(|value| {
                            let header = Header { key: event::header::TRACEPARENT, value: Some(&value) };
                            OwnedHeaders::new_with_capacity(1).insert(header)
                        }),
                    }
                }
                Outcome::DeadLetter { reason } => {
                    settling.unreadable(position, reason);
                    // A letter keeps the headers of its event.
                    settling.publish(
                        position,
                        &self.topics.dead_letters,
                        partitions.dead_letter_for(record.partition()),
                    );
                    let limit = self.dead_letter_limit;
                    let DeadLetter { key, value, headers } =
                        DeadLetter::new(record, reason, &self.group.name, notified_at, limit);
                    Outgoing {
                        topic: &self.topics.dead_letters,
                        partition: partitions.dead_letter_for(record.partition()),
                        key,
                        value,
                        headers: Some(headers),
                    }
                }
            });
        let offsets = offsets(&self.topics.orders, &batch::next_offsets(batch));
        let offsets = offsets.map_err(|error| Failure::Broken(error.to_string()))?;
        let committed = transactions.run(outgoing, &offsets, &assignment.group);
        committed.inspect_err(|failure| spans.fail(failure.reason()))?;
        self.metrics.transaction.observe(began.elapsed().as_secs_f64());
        self.record_settled(batch, &settled, &spans);
        Ok(())
    }

    /// Counts and logs what was committed.
    fn record_settled(&self, batch: &[BorrowedMessage<'_>], settled: &Settled, spans: &Spans) {
        let counter = |outcome| self.metrics.events.get_or_create(&OutcomeLabel { outcome }).clone();
        let (notified, dead) = (counter(OutcomeValue::notified), counter(OutcomeValue::dead_letter));
        for (position, (record, outcome)) in batch.iter().zip(&settled.outcomes).enumerate() {
            let context = spans.log_context(position);
            let _logged_in = context.map(Context::attach);
            match outcome {
                Outcome::Notified { event_id, order_id, accepted_at, .. } => {
                    notified.inc();
                    let waited = settled.notified_at.unix_microseconds() - accepted_at.unix_microseconds();
                    self.metrics.end_to_end.observe(waited as f64 / 1e6, traces::exemplar(), None);
                    if self.log_notifications {
                        let (partition, offset) = (record.partition(), record.offset());
                        tracing::info!(%order_id, %event_id, partition, offset, "notified");
                    }
                }
                Outcome::DeadLetter { reason } => {
                    dead.inc();
                    let (partition, offset) = (record.partition(), record.offset());
                    tracing::warn!(partition, offset, reason, "event unreadable, written to the dead-letter topic");
                }
            }
        }
        self.metrics.batches.inc();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.metrics.last_commit.set(now.as_secs_f64());
    }

    /// Finds the reason why Kafka has no record at a position: retention overtook this consumer, or the log was cut.
    fn out_of_log(&self, consumer: &BaseConsumer<Membership>) -> End {
        let assigned = consumer.assignment().map_err(|error| Unresolved::Unreadable(error.to_string()));
        let resolved = assigned
            .and_then(|assigned| position::resolve(consumer, &assigned, &self.group, || self.stop.is_cancelled()));
        match resolved {
            Err(Unresolved::Lost(lost)) => End::Lost(lost),
            Err(Unresolved::Unreadable(cause)) => End::Rejoin(RejoinReason::consume, cause),
            Ok(_) => End::Rejoin(RejoinReason::consume, "a position was outside of the log".to_owned()),
        }
    }

    /// Halves the limit for dead letters after Kafka refused one: half a letter is better than a blocked partition.
    fn cut_dead_letters(&mut self) {
        if self.dead_letter_limit > SMALLEST_DEAD_LETTER_LIMIT {
            self.dead_letter_limit = (self.dead_letter_limit / 2).max(SMALLEST_DEAD_LETTER_LIMIT);
            self.backoff.reset();
            let (topic, bytes) = (&self.topics.dead_letters, self.dead_letter_limit);
            tracing::warn!(topic, bytes, "Kafka refused a dead letter as too large, reducing their size");
        }
    }

    /// Waits for the next delay of the backoff, or until stopped.
    fn pause(&mut self) {
        let until = Instant::now() + self.backoff.next_delay();
        while Instant::now() < until && !self.stop.is_cancelled() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A guard that takes no more partitions once it is dropped. Leaving the group takes at most 5 s, which is librdkafka's
/// wait for the answer of a frozen Kafka.
struct Leaving(BaseConsumer<Membership>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.context().leave();
    }
}

/// Sets partitions back to their first records of a batch, so that it is read again.
fn rewind(consumer: &BaseConsumer<Membership>, topic: &str, first: &BTreeMap<i32, i64>) -> KafkaResult<()> {
    let sought = consumer.seek_partitions(offsets(topic, first)?, Duration::from_secs(2))?;
    sought.elements().iter().try_for_each(rdkafka::topic_partition_list::TopicPartitionListElem::error)
}

fn offsets(topic: &str, offsets: &BTreeMap<i32, i64>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(list)
}
