//! Gathering what one transaction will settle: what is there, up to a count, a size and a time. A rebalance in the middle
//! throws away what was gathered, before anything of it was written anywhere.

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

/// So many that what a transaction costs beside its records is little: several requests, and often 20 ms, which is how long
/// librdkafka waits when Kafka is still writing the markers of the transaction before. On a backlog 1,000 gave 40,000 events/s,
/// 4,000 gave 75,000, and 8,000 no more.
const MOST_RECORDS: usize = 4_000;
/// Of keys and values. What it becomes must fit librdkafka's buffer of 16 MiB beside the one record that may exceed this.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// Shortest time between two batches that are not full. The first record after a pause goes at once; under load a transaction costs
/// Kafka much the same for one record as for hundreds.
const PACE: Duration = Duration::from_millis(25);
/// Longest wait for a first record, so that stopping is noticed.
const LONGEST_IDLING: Duration = Duration::from_millis(200);

/// Why no batch was gathered.
#[derive(Debug)]
pub enum Interruption {
    /// The position in a partition is not, or no longer, in its log.
    OutOfLog,
    /// Anything else that a new consumer may not meet.
    Broken(String),
}

/// Waits for records, which are due when the batch before them was gathered [`PACE`] ago. Empty if there were none, or if the
/// partitions changed hands meanwhile.
pub fn gather<'consumer>(
    consumer: &'consumer BaseConsumer<Membership>,
    guard: &mut OffsetGuard,
    last: Option<Instant>,
) -> Result<Vec<BorrowedMessage<'consumer>>, Interruption> {
    let rebalances = consumer.context().rebalances();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    // With this one a batch is gathered until there is a rebalance, so that there is one to keep it across.
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
                guard.follow(record.partition(), record.offset()).map_err(Interruption::Broken)?;
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
            Some(Err(error)) => judge(&error)?,
            None if Instant::now() >= until => return Ok(batch),
            // Some event that was no record.
            None => {}
        }
    }
}

/// The first offset of each partition in a batch: where to go back to if the batch is not settled.
pub fn first_offsets(batch: &[BorrowedMessage<'_>]) -> BTreeMap<i32, i64> {
    let mut first = BTreeMap::new();
    for record in batch {
        first.entry(record.partition()).or_insert(record.offset());
    }
    first
}

/// The offset after the last one of each partition in a batch: what to commit.
pub fn next_offsets(batch: &[BorrowedMessage<'_>]) -> BTreeMap<i32, i64> {
    batch.iter().map(|record| (record.partition(), record.offset() + 1)).collect()
}

fn judge(error: &KafkaError) -> Result<(), Interruption> {
    match error {
        KafkaError::MessageConsumption(
            // librdkafka reconnects by itself, and revokes the partitions if that takes too long.
            RDKafkaErrorCode::AllBrokersDown
            | RDKafkaErrorCode::BrokerTransportFailure
            | RDKafkaErrorCode::Resolve
            | RDKafkaErrorCode::OperationTimedOut
            | RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SSL,
        ) => Ok(()),
        KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => Err(Interruption::OutOfLog),
        // Among these are a broken checksum and a record too large to fetch: librdkafka would go on behind it.
        other => Err(Interruption::Broken(other.to_string())),
    }
}

/// What each partition may deliver next: a guard against a record that is delivered twice, or passed over after going
/// back. Offsets may have gaps, as aborted records and transaction markers have offsets too.
#[derive(Debug, Default)]
pub struct OffsetGuard {
    next: HashMap<i32, Next>,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    AtLeast(i64),
    /// A record that has been there before.
    Exactly(i64),
}

impl OffsetGuard {
    pub fn new(assignment: &Assignment) -> Self {
        Self {
            next: assignment.starts.iter().map(|(partition, offset)| (*partition, Next::AtLeast(*offset))).collect(),
        }
    }

    /// The partitions were set back to these records.
    pub fn rewind(&mut self, first: &BTreeMap<i32, i64>) {
        self.next.extend(first.iter().map(|(partition, offset)| (*partition, Next::Exactly(*offset))));
    }

    fn follow(&mut self, partition: i32, offset: i64) -> Result<(), String> {
        let next = self.next.get_mut(&partition);
        let next = next.ok_or_else(|| format!("partition {partition} was read, and is not assigned"))?;
        let in_order = match *next {
            Next::AtLeast(lowest) => offset >= lowest,
            Next::Exactly(expected) => offset == expected,
        };
        if !in_order {
            return Err(format!("partition {partition} delivered offset {offset} where {next:?} was due"));
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
    fn gaps_are_fine_and_repetitions_are_not() {
        let mut guard = guard();
        assert_eq!(guard.follow(0, 5), Ok(()));
        assert_eq!(guard.follow(0, 9), Ok(()));
        assert!(guard.follow(0, 9).is_err());
        assert!(guard.follow(1, 0).is_err());
    }

    #[test]
    fn after_going_back_nothing_is_passed_over() {
        let mut guard = guard();
        guard.follow(0, 5).unwrap();
        guard.rewind(&BTreeMap::from([(0, 5)]));
        assert!(guard.follow(0, 6).is_err());
        assert_eq!(guard.follow(0, 5), Ok(()));
        assert_eq!(guard.follow(0, 6), Ok(()));
    }
}
