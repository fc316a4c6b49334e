//! Dead letters: events that no consumer could read. This crate defines their format, reads them, and replays each of
//! them once to the partition that it came from.
//!
//! The consumer, which writes them and has the `dlq` commands, and the producer's API use this crate. It needs only
//! Kafka. The committed offsets of the group `<consumers' group>.dlq-replay` record what was replayed. If the broker
//! has deleted these offsets, the [markers](marker) in the topic record the same. All calls block.

pub mod letter;
mod letters;
mod marker;
mod page;
mod replay;

use std::{sync::Arc, time::Duration};

use orderflow_core::Topics;
use orderflow_service::kafka::{self, reader::Deadline};

pub use letter::{DeadLetter, Description};
pub use letters::Letters;
use letters::MarkerCache;
pub use page::{CountCache, Counts, Page, SeveralPartitions};
pub use replay::{Outcome, Progress, Replay, TakenOver};

/// The dead letters of one consumer group. Cheap to clone; clones share their cache.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    kafka: kafka::Settings,
    topics: Topics,
    /// The group whose committed offsets record what was replayed. It never has members.
    group: String,
    markers: Arc<MarkerCache>,
}

impl DeadLetters {
    /// Names the dead letters of the group `consumers`. Connects to nothing yet.
    pub fn new(kafka: &kafka::Settings, consumers: &str) -> Self {
        Self {
            kafka: kafka.clone(),
            topics: Topics::named(&kafka.kafka_topic),
            group: format!("{consumers}.dlq-replay"),
            markers: Arc::default(),
        }
    }

    /// Returns the name of the dead-letter topic.
    pub fn topic(&self) -> &str {
        &self.topics.dead_letters
    }
}

/// The deadline of a command: 30 s without progress. A transaction that a killed replay left open hides the committed
/// offsets for 10 s to 20 s.
pub const COMMAND: Deadline = Deadline::Idle(Duration::from_secs(30));
