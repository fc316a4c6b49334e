//! Where to begin reading a partition: at the offset that the group committed, or at the beginning if it never did. A
//! committed offset that the log does not have means that events were lost unread, which is never passed over in silence.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaResult,
};

/// Longest wait for the committed offsets. They are not to be had while a transaction holds offsets of the group, and a
/// killed process leaves its transaction open for 10 s, plus up to 10 s until a broker with default settings looks.
const PATIENCE: Duration = Duration::from_secs(25);

/// Longest wait for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a lost position must have been seen before it is believed: after a change of leader the end of a log may lag
/// for a moment.
const SIGHTINGS: u32 = 3;

/// The group's committed offset is outside of the log. Only a person can decide where to go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{topic}/{partition}: the group {group:?} committed offset {committed}, but the log holds {start} to {end}: {lost}. \
     Nothing is skipped silently. Stop all consumers of this group, choose where to go on, and start them again. To go on \
     with the oldest event that is left: kafka-consumer-groups.sh --bootstrap-server {brokers} --group {group} \
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
    /// Offset that the next record will get, or of the first one that is not committed yet.
    pub end: i64,
    /// What that means, as a clause.
    pub lost: String,
}

#[derive(Debug)]
pub enum Unresolved {
    Lost(LostPosition),
    /// Kafka did not say within the patience.
    Unreadable(String),
}

/// Names the group in messages.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    pub brokers: String,
}

/// Puts a start offset on each of `partitions`. Waits until no transaction of a predecessor is pending, tries again after
/// errors, and gives up when its patience is over or `stopping` says so.
pub fn resolve<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &TopicPartitionList,
    group: &Group,
    stopping: impl Fn() -> bool,
) -> Result<TopicPartitionList, Unresolved> {
    let deadline = Instant::now() + PATIENCE;
    let mut sightings = 0;
    loop {
        let reason = match attempt(consumer, partitions, group) {
            Ok(Ok(starts)) => return Ok(starts),
            Ok(Err(lost)) => {
                sightings += 1;
                if sightings == SIGHTINGS {
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
    // With read_committed this asks for stable offsets: those of a pending transaction are waited for.
    let mut starts = TopicPartitionList::new();
    let committed = consumer.committed_offsets(partitions.clone(), CALL_TIMEOUT)?;
    for partition in committed.elements() {
        partition.error()?;
        let (topic, number) = (partition.topic(), partition.partition());
        let start = match partition.offset() {
            Offset::Offset(committed) => {
                let (start, end) = consumer.fetch_watermarks(topic, number, CALL_TIMEOUT)?;
                if let Some(lost) = lost_between(committed, start, end) {
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

/// What a committed offset outside of a log's `start..=end` means.
fn lost_between(committed: i64, start: i64, end: i64) -> Option<String> {
    if committed < start {
        Some(format!("{} offsets were deleted before they were read", start - committed))
    } else if committed > end {
        Some("the log was cut or made anew, and lost records that had been acknowledged".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_committed_offset_must_be_in_the_log_or_at_its_end() {
        assert_eq!(lost_between(5, 5, 9), None);
        assert_eq!(lost_between(9, 5, 9), None);
        assert_eq!(lost_between(4, 5, 9).unwrap(), "1 offsets were deleted before they were read");
        assert!(lost_between(10, 5, 9).unwrap().contains("made anew"));
    }

    #[test]
    fn a_lost_position_names_all_that_is_needed_to_choose_a_new_one() {
        let lost = LostPosition {
            topic: "orders".into(),
            partition: 3,
            group: "g".into(),
            brokers: "kafka:9092".into(),
            committed: 4,
            start: 5,
            end: 9,
            lost: lost_between(4, 5, 9).unwrap(),
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
