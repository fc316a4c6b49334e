//! Gathers the records of one transaction, up to a count, a size and a time. A rebalance discards the gathered records,
//! before anything is written.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use orderflow_service::{failpoint::defect, kafka::poll_timeout};
use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
};

use crate::membership::{Assignment, Membership};

/// The most records of a batch: enough to make the fixed cost of a transaction small. That cost is several requests,
/// and often 20 ms, which librdkafka waits while Kafka still writes the markers of the previous transaction. On a
/// backlog, 1,000 records gave 40,000 events/s, 4,000 gave 75,000, and 8,000 no more.
const MOST_RECORDS: usize = 4_000;
/// The most bytes of keys and values in a batch. Its output must fit into librdkafka's buffer of 16 MiB, together with
/// the one record that may exceed this limit.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// The shortest time between two batches that are not full. The first record after a pause is handled at once. Under
/// load a transaction costs Kafka about the same for one record as for hundreds.
const PACE: Duration = Duration::from_millis(25);
/// The longest wait for a first record. It bounds the time until a stop is noticed.
const LONGEST_IDLING: Duration = Duration::from_millis(200);

/// A failure that ends the gathering without a batch.
#[derive(Debug)]
pub enum Interruption {
    /// The position in a partition is not, or no longer, in its log.
    OutOfLog,
    /// Any other failure. A new consumer may recover from it.
    Broken(String),
}

/// Waits for records, until [`PACE`] after the `last` batch. Returns an empty batch if none came, or if a rebalance
/// happened.
pub fn gather<'consumer>(
    consumer: &'consumer BaseConsumer<Membership>,
    guard: &mut OffsetGuard,
    last: Option<Instant>,
) -> Result<Vec<BorrowedMessage<'consumer>>, Interruption> {
    let rebalances = consumer.context().rebalances();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    // This defect gathers until a rebalance happens, to keep the batch across it.
    let keeps_batch = defect("consumer::keeps-batch-across-rebalance");
    let mut until = Instant::now() + LONGEST_IDLING;
    loop {
        let polled = consumer.poll(poll_timeout(until.saturating_duration_since(Instant::now())));
        if consumer.context().rebalances() != rebalances {
            if !keeps_batch || batch.is_empty() {
                return Ok(Vec::new());
            }
            if consumer.context().assignment().is_some() {
                return Ok(batch);
            }
        }
        match polled {
            Some(Ok(record)) => {
                guard.check(record.partition(), record.offset()).map_err(Interruption::Broken)?;
                bytes += record.key_len() + record.payload_len();
                if batch.is_empty() {
                    until = last.map_or_else(Instant::now, |last| last + PACE);
                    if keeps_batch {
                        until = Instant::now() + Duration::from_secs(60);
                        tracing::info!("keeps its batch");
                    }
                }
                batch.push(record);
                if batch.len() >= MOST_RECORDS || bytes >= MOST_BYTES {
                    return Ok(batch);
                }
            }
            Some(Err(error)) => tolerate(&error)?,
            None if Instant::now() >= until => return Ok(batch),
            // librdkafka handled an event that was no record.
            None => {}
        }
    }
}

/// Returns the first offset of each partition in a batch, to which to rewind if the batch is not settled.
pub fn first_offsets(batch: &[BorrowedMessage<'_>]) -> BTreeMap<i32, i64> {
    let mut first = BTreeMap::new();
    for record in batch {
        first.entry(record.partition()).or_insert(record.offset());
    }
    first
}

/// Returns the offset after the last one of each partition in a batch, which is the offset to commit.
pub fn next_offsets(batch: &[BorrowedMessage<'_>]) -> BTreeMap<i32, i64> {
    batch.iter().map(|record| (record.partition(), record.offset() + 1)).collect()
}

/// Ignores errors that librdkafka recovers from.
fn tolerate(error: &KafkaError) -> Result<(), Interruption> {
    match error {
        KafkaError::MessageConsumption(
            // librdkafka reconnects, and revokes the partitions if that takes too long.
            RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::Resolve
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SSL,
        ) => Ok(()),
        KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => Err(Interruption::OutOfLog),
        // Includes a wrong checksum and a record too large to fetch, which librdkafka would skip.
        other => Err(Interruption::Broken(other.to_string())),
    }
}

/// A guard against records that are delivered twice, or skipped after a rewind. Offsets may have gaps, because aborted
/// records and transaction markers have offsets as well.
#[derive(Debug, Default)]
pub struct OffsetGuard {
    next: HashMap<i32, Next>,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    AtLeast(i64),
    /// A record that was delivered before.
    Exactly(i64),
}

impl OffsetGuard {
    pub fn new(assignment: &Assignment) -> Self {
        Self {
            next: assignment.starts.iter().map(|(partition, offset)| (*partition, Next::AtLeast(*offset))).collect(),
        }
    }

    /// Expects the partitions to deliver these records again.
    pub fn rewind(&mut self, first: &BTreeMap<i32, i64>) {
        self.next.extend(first.iter().map(|(partition, offset)| (*partition, Next::Exactly(*offset))));
    }

    fn check(&mut self, partition: i32, offset: i64) -> Result<(), String> {
        let next = self.next.get_mut(&partition);
        let next = next.ok_or_else(|| format!("partition {partition} delivered a record, but is not assigned"))?;
        let in_order = match *next {
            Next::AtLeast(lowest) => offset >= lowest,
            Next::Exactly(expected) => offset == expected,
        };
        if !in_order {
            return Err(format!("partition {partition} delivered offset {offset}, expected {next:?}"));
        }
        *next = Next::AtLeast(offset + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> OffsetGuard {
        OffsetGuard { next: HashMap::from([(0, Next::AtLeast(5))]) }
    }

    #[test]
    fn gaps_are_accepted_and_repetitions_are_refused() {
        let mut guard = guard();
        assert_eq!(guard.check(0, 5), Ok(()));
        assert_eq!(guard.check(0, 9), Ok(()));
        assert!(guard.check(0, 9).is_err());
        assert!(guard.check(1, 0).is_err());
    }

    #[test]
    fn no_record_is_skipped_after_a_rewind() {
        let mut guard = guard();
        guard.check(0, 5).unwrap();
        guard.rewind(&BTreeMap::from([(0, 5)]));
        assert!(guard.check(0, 6).is_err());
        assert_eq!(guard.check(0, 5), Ok(()));
        assert_eq!(guard.check(0, 6), Ok(()));
    }
}
