//! Finds the start offset of a partition: the group's committed offset, or the beginning of the log if there is none. A
//! committed offset outside of the log means that unread events were lost, which is always an error.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaResult,
};

/// The longest wait for the committed offsets. Kafka does not return them while a transaction holds offsets of the
/// group. A killed process leaves its transaction open for 10 s, plus up to 10 s until a broker with default settings
/// aborts it.
const TIMEOUT: Duration = Duration::from_secs(25);

/// The longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// The number of times that a position must be found lost before it counts, since the end of a log may lag for a moment
/// after a change of leader.
const CONFIRMATIONS: u32 = 3;

/// A committed offset that is outside of the log. Only a person can choose the offset to continue from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{topic}/{partition}: the group {group:?} committed offset {committed}, but the log holds {start} to {end}: {lost}. \
     The consumer skips no event silently. Stop all consumers of this group, choose an offset, and start them again. To \
     continue with the oldest remaining event: kafka-consumer-groups.sh --bootstrap-server {brokers} --group {group} \
     --topic {topic}:{partition} --reset-offsets --to-offset {start} --execute"
)]
pub struct LostPosition {
    pub topic: String,
    pub partition: i32,
    pub group: String,
    pub brokers: String,
    pub committed: i64,
    /// Offset of the oldest record that the log still has.
    pub start: i64,
    /// Offset of the next record, or of the first record that is not committed yet.
    pub end: i64,
    /// The consequence, as a clause.
    pub lost: String,
}

#[derive(Debug)]
pub enum Unresolved {
    Lost(LostPosition),
    /// Kafka did not return the offsets in time.
    Unreadable(String),
}

/// The group's name and brokers, for error messages.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    pub brokers: String,
}

/// Finds the start offset of each of `partitions`. Waits for open transactions of a predecessor and retries after
/// errors, until the timeout or until `stopping` returns true.
pub fn resolve<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &TopicPartitionList,
    group: &Group,
    stopping: impl Fn() -> bool,
) -> Result<TopicPartitionList, Unresolved> {
    let deadline = Instant::now() + TIMEOUT;
    let mut confirmations = 0;
    loop {
        let reason = match attempt(consumer, partitions, group) {
            Ok(Ok(starts)) => return Ok(starts),
            Ok(Err(lost)) => {
                confirmations += 1;
                if confirmations == CONFIRMATIONS {
                    return Err(Unresolved::Lost(lost));
                }
                lost.to_string()
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline || stopping() {
            return Err(Unresolved::Unreadable(reason));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn attempt<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &TopicPartitionList,
    group: &Group,
) -> KafkaResult<Result<TopicPartitionList, LostPosition>> {
    // With read_committed, Kafka returns only stable offsets: it fails while a transaction with offsets is pending.
    let mut starts = TopicPartitionList::new();
    let committed = consumer.committed_offsets(partitions.clone(), CALL_TIMEOUT)?;
    for partition in committed.elements() {
        partition.error()?;
        let (topic, number) = (partition.topic(), partition.partition());
        let start = match partition.offset() {
            Offset::Offset(committed) => {
                let (start, end) = consumer.fetch_watermarks(topic, number, CALL_TIMEOUT)?;
                if let Some(lost) = explain_loss(committed, start, end) {
                    return Ok(Err(LostPosition {
                        topic: topic.to_owned(),
                        partition: number,
                        group: group.name.clone(),
                        brokers: group.brokers.clone(),
                        committed,
                        start,
                        end,
                        lost,
                    }));
                }
                Offset::Offset(committed)
            }
            _ => Offset::Beginning,
        };
        starts.add_partition_offset(topic, number, start)?;
    }
    Ok(Ok(starts))
}

/// Explains a committed offset outside of a log's `start..=end`. Returns `None` for one inside.
fn explain_loss(committed: i64, start: i64, end: i64) -> Option<String> {
    if committed < start {
        Some(format!("{} offsets were deleted before they were read", start - committed))
    } else if committed > end {
        Some("the log was cut or the topic created again, and acknowledged records were lost".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_committed_offset_must_be_in_the_log_or_at_its_end() {
        assert_eq!(explain_loss(5, 5, 9), None);
        assert_eq!(explain_loss(9, 5, 9), None);
        assert_eq!(explain_loss(4, 5, 9).unwrap(), "1 offsets were deleted before they were read");
        assert!(explain_loss(10, 5, 9).unwrap().contains("created again"));
    }

    #[test]
    fn a_lost_position_has_the_command_that_chooses_a_new_one() {
        let lost = LostPosition {
            topic: "orders".into(),
            partition: 3,
            group: "g".into(),
            brokers: "kafka:9092".into(),
            committed: 4,
            start: 5,
            end: 9,
            lost: explain_loss(4, 5, 9).unwrap(),
        };
        let text = lost.to_string();
        assert!(text.starts_with("orders/3: the group \"g\" committed offset 4, but the log holds 5 to 9"), "{text}");
        assert!(
            text.ends_with(
                "kafka-consumer-groups.sh --bootstrap-server kafka:9092 --group g --topic orders:3 --reset-offsets --to-offset 5 --execute"
            ),
            "{text}"
        );
    }
}
