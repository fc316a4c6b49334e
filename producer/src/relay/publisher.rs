//! The relay's transactional producer: one transaction per batch. Everything in here blocks.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use orderflow_core::{OrderCreated, Topics, event::header};
use orderflow_service::{
    failpoint::defect,
    kafka::{self, LastError, TransactionError, drain},
};
use rdkafka::{
    ClientContext, Message,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};

use super::{outbox::OutboxRow, progress::Progress, spans::Spans};

/// Longest time for the first answer of the transaction coordinator: it may first have to end a predecessor's
/// transaction.
const INIT_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest time for one transaction. The broker aborts one after 10 s (`transaction.timeout.ms`).
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Time of a poll that is long enough to receive the pending events.
const EVENTS: Duration = Duration::from_millis(20);

/// The position of the progress record among the delivery reports.
const PROGRESS: usize = usize::MAX;

pub struct Publisher {
    /// The client; `None` only while it is dropped.
    producer: Option<BaseProducer<Reports>>,
    topics: Topics,
    shard: orderflow_core::Shard,
}

/// The outcome of a batch.
pub enum Published {
    All,
    /// Kafka refused this event: nothing was published, nor will be while it is in the batch. The publisher is
    /// unusable, even after an abort: the refused records have sequence numbers that Kafka never took and would miss
    /// before all later ones.
    Refused {
        seq: i64,
        reason: String,
    },
    /// The progress record, which lists the batch, is larger than the relay topic takes: nothing was published. The
    /// publisher is unusable.
    TooMany,
}

/// A record that was not delivered: its position in the batch, and the error.
type Failed = (usize, KafkaError);

/// Collects the deliveries that failed.
#[derive(Default)]
struct Reports {
    failed: Mutex<Vec<Failed>>,
    last_error: LastError,
}

impl Publisher {
    /// Fences every other publisher of this shard, and returns the last batch that one of them committed.
    pub fn start(
        settings: &kafka::Settings,
        topics: &Topics,
        shard: &orderflow_core::Shard,
    ) -> anyhow::Result<(Self, Option<Progress>)> {
        let transactional_id = format!("{}.{}", topics.relay, shard.name);
        let mut config = settings.transactional_producer(&transactional_id);
        if defect("relay::fences-nobody") {
            config.set("transactional.id", format!("{transactional_id}.{}", std::process::id()));
            // The transaction of a frozen relay must still be open when it wakes.
            config.set("transaction.timeout.ms", "60000");
        }
        let producer = BaseProducer::from_config_and_context(&config, Reports::default()).context("make a producer")?;
        if let Err(error) = retry(INIT_TIMEOUT, |left| producer.init_transactions(left)) {
            // The error only reports a timeout; the reason is among the events.
            producer.poll(EVENTS);
            bail!("init_transactions: {}", kafka::explain(&error, producer.context().last_error.get().as_ref()));
        }
        let last = Progress::read_last(settings, topics, shard).context("read the last progress record")?;
        Ok((Self { producer: Some(producer), topics: topics.clone(), shard: shard.clone() }, last))
    }

    /// Publishes a batch and its progress record in one transaction. `Err`: its outcome is unknown, and this publisher
    /// is unusable.
    pub fn publish(&self, batch: &[OutboxRow]) -> anyhow::Result<Published> {
        let mut spans = Spans::start(&self.topics.orders, batch);
        let published = self.publish_with(batch, &spans);
        match &published {
            Ok(Published::All) => {}
            Ok(Published::Refused { reason, .. }) => spans.fail("refused", reason),
            Ok(Published::TooMany) => spans.fail("refused", "the progress record is too large"),
            Err(error) => spans.fail("transaction", &format!("{error:#}")),
        }
        published
    }

    fn publish_with(&self, batch: &[OutboxRow], spans: &Spans) -> anyhow::Result<Published> {
        let deadline = Instant::now() + TRANSACTION_TIMEOUT;
        self.reports().clear();
        self.producer().begin_transaction().context("begin a transaction")?;
        let sent = self.produce(batch, spans, deadline);
        // Also after a failed send: a record that Kafka refuses makes all unsent ones fail too, and only the reports
        // show which one it is.
        let drained = drain(self.producer(), deadline);
        let mut failed = std::mem::take(&mut *self.reports());
        failed.extend(sent.err());
        if let Some(cause) = cause(failed) {
            return outcome_of(cause, batch);
        }
        if !drained {
            bail!("Kafka did not take a batch within {} s", TRANSACTION_TIMEOUT.as_secs());
        }
        fail::fail_point!("relay::before-commit", |_| std::process::abort());
        retry(deadline.saturating_duration_since(Instant::now()), |left| self.producer().commit_transaction(left))
            .context("commit a transaction")?;
        fail::fail_point!("relay::after-commit", |_| std::process::abort());
        Ok(Published::All)
    }

    /// Hands a batch and its progress record to the client.
    fn produce(&self, batch: &[OutboxRow], spans: &Spans, deadline: Instant) -> Result<(), Failed> {
        for (position, row) in batch.iter().enumerate() {
            let traceparent = spans.traceparent(position);
            let traceparent = traceparent.as_deref().or(row.traceparent.as_deref());
            self.produce_event(position, row, traceparent, deadline).map_err(|error| (position, error))?;
        }
        let progress = serde_json::to_vec(&Progress::new(batch)).expect("a list of ids is JSON");
        let record = BaseRecord::with_opaque_to(&self.topics.relay, PROGRESS)
            .partition(self.shard.number.relay_partition())
            .key(self.shard.name.as_str())
            .payload(progress.as_slice());
        self.send(record, deadline).map_err(|error| (PROGRESS, error))
    }

    fn produce_event(
        &self,
        position: usize,
        row: &OutboxRow,
        traceparent: Option<&str>,
        deadline: Instant,
    ) -> KafkaResult<()> {
        let event_id = row.event_id.hyphenated().to_string();
        let mut headers = OwnedHeaders::new_with_capacity(3)
            .insert(Header { key: header::EVENT_ID, value: Some(&event_id) })
            .insert(Header { key: header::SCHEMA_VERSION, value: Some(OrderCreated::SCHEMA_VERSION) });
        if let Some(traceparent) = traceparent {
            headers = headers.insert(Header { key: header::TRACEPARENT, value: Some(traceparent) });
        }
        let record = BaseRecord::with_opaque_to(&self.topics.orders, position)
            .key(row.user_id.as_str())
            .payload(row.payload.as_slice())
            .headers(headers);
        self.send(record, deadline)
    }

    /// Waits while the producer's buffer is full.
    fn send(&self, mut record: BaseRecord<'_, str, [u8], usize>, deadline: Instant) -> KafkaResult<()> {
        loop {
            match self.producer().send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    record = back;
                    self.producer().poll(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    fn producer(&self) -> &BaseProducer<Reports> {
        self.producer.as_ref().expect("taken only by drop")
    }

    fn reports(&self) -> std::sync::MutexGuard<'_, Vec<Failed>> {
        self.producer().context().failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Publisher {
    /// Ending a client joins its threads, which can take a while when the brokers do not answer; the publisher may be
    /// dropped on a thread that serves requests.
    fn drop(&mut self) {
        let producer = self.producer.take();
        std::thread::spawn(move || drop(producer));
    }
}

impl ClientContext for Reports {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka");
        self.last_error.record_line(message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        self.last_error.record(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, position: usize) {
        if let Err((error, message)) = result {
            tracing::debug!(%error, topic = message.topic(), "not delivered");
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).push((position, error.clone()));
        }
    }
}

/// Returns the outcome of a batch with this failure. An event that is too large or invalid is refused for good. After
/// any other failure the relay restarts, and its events wait for that.
fn outcome_of((position, error): Failed, batch: &[OutboxRow]) -> anyhow::Result<Published> {
    match batch.get(position) {
        Some(row) if is_permanent(&error) => Ok(Published::Refused { seq: row.seq, reason: error.to_string() }),
        Some(_) => Err(error).context("produce an event"),
        None if is_permanent(&error) && batch.len() > 1 => Ok(Published::TooMany),
        None => Err(error).context("produce the progress record"),
    }
}

/// Returns the failure from which the others may have followed.
fn cause(mut failed: Vec<Failed>) -> Option<Failed> {
    let refused = failed.iter().position(|(_, error)| is_permanent(error)).unwrap_or(0);
    (refused < failed.len()).then(|| failed.swap_remove(refused))
}

fn is_permanent(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidRecord))
}

/// Retries a call while its error is retriable, within `timeout`. The outcome of a commit that timed out is unknown: it
/// must be called again, not aborted.
fn retry(timeout: Duration, mut call: impl FnMut(Duration) -> KafkaResult<()>) -> KafkaResult<()> {
    let deadline = Instant::now() + timeout;
    loop {
        match call(deadline.saturating_duration_since(Instant::now())) {
            Err(error)
                if TransactionError::from_kafka(&error) == TransactionError::Retriable && Instant::now() < deadline =>
            {
                tracing::debug!(%error, "retrying a call");
            }
            result => return result,
        }
    }
}
