//! Checks that the topics exist and fit together. The consumer checks this before it joins the group, so that a missing
//! topic is a clear error in `/readyz` rather than a failing transaction.

use std::time::Duration;

use orderflow_core::Topics;
use orderflow_service::kafka::{HasLastError, reader};
use rdkafka::consumer::{BaseConsumer, ConsumerContext};

/// The longest wait for the metadata of one topic.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The numbers of partitions of the topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partitions {
    pub orders: usize,
    pub notifications: usize,
    pub dead_letters: usize,
}

impl Partitions {
    /// Fetches the numbers from Kafka and checks them.
    pub fn fetch<C: ConsumerContext + HasLastError>(
        topics: &Topics,
        consumer: &BaseConsumer<C>,
    ) -> Result<Self, String> {
        let count =
            |topic: &str| -> Result<usize, String> { Ok(reader::partitions(consumer, topic, CALL_TIMEOUT)? as usize) };
        let partitions = Self {
            orders: count(&topics.orders)?,
            notifications: count(&topics.notifications)?,
            dead_letters: count(&topics.dead_letters)?,
        };
        partitions.check(topics).map(|()| partitions)
    }

    /// Returns the partition for a dead letter. It is the same for all events of a source partition, so that a replay
    /// keeps their order.
    pub fn dead_letter_for(self, source: i32) -> i32 {
        source % self.dead_letters as i32
    }

    fn check(self, topics: &Topics) -> Result<(), String> {
        if self.notifications >= self.orders {
            return Ok(());
        }
        Err(format!(
            "topic {} has {} partitions and {} has {}, but a notification goes to the partition number of its event. Add \
             partitions: kafka-topics.sh --alter --topic {} --partitions {}",
            topics.notifications, self.notifications, topics.orders, self.orders, topics.notifications, self.orders,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_of_events_needs_one_of_notifications() {
        let topics = Topics::named("orders");
        let fitting = Partitions { orders: 6, notifications: 6, dead_letters: 1 };
        assert_eq!(fitting.check(&topics), Ok(()));
        let error = Partitions { notifications: 3, ..fitting }.check(&topics).unwrap_err();
        assert!(error.starts_with("topic orders.notifications has 3 partitions and orders has 6"), "{error}");
    }

    #[test]
    fn the_dead_letters_of_a_partition_stay_together() {
        let partitions = Partitions { orders: 6, notifications: 6, dead_letters: 4 };
        assert_eq!([0, 3, 4, 5].map(|source| partitions.dead_letter_for(source)), [0, 3, 0, 1]);
    }
}
