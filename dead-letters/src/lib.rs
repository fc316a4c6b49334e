//! Dead letters: events that no consumer could read. What one looks like, reading those that Kafka has, and sending them
//! back to where they came from, each once.
//!
//! Used by the consumer, which writes them and has the `dlq` commands, and by the producer's API. Needs nothing but Kafka.
//! The committed offsets of the group `<consumers' group>.dlq-replay` say what was replayed; where the broker has
//! forgotten them, the [markers](marker) in the topic do. All calls block.

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

/// The dead letters of one consumer group. Cheap to clone; clones share what they know.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    kafka: kafka::Settings,
    topics: Topics,
    /// The group whose committed offsets say what was replayed. It never has members.
    group: String,
    markers: Arc<MarkerCache>,
}

impl DeadLetters {
    /// Those of the consumers in this group.
    pub fn new(kafka: &kafka::Settings, consumers: &str) -> Self {
        Self {
            kafka: kafka.clone(),
            topics: Topics::named(&kafka.kafka_topic),
            group: format!("{consumers}.dlq-replay"),
            markers: Arc::default(),
        }
    }

    /// The topic they are in.
    pub fn topic(&self) -> &str {
        &self.topics.dead_letters
    }
}

/// The deadline of a command: 30 s without progress. A transaction that a killed replay left open hides which offsets are
/// committed for 10 s, and up to 10 s more.
pub const COMMAND: Deadline = Deadline::Idle(Duration::from_secs(30));
