//! This process as a member of its consumer group: takes the partitions it is given at the offsets the group committed,
//! and gives them up when told. Called by librdkafka inside of the pipeline's polls; the pipeline then looks here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use orderflow_service::{
    kafka::{HasLastError, LastError},
    shutdown::CancellationToken,
};
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata},
    error::KafkaError,
    types::RDKafkaRespErr,
};

use crate::position::{self, Group, Unresolved};

/// The consumer's context.
pub struct Membership {
    group: Group,
    stop: CancellationToken,
    state: Mutex<State>,
    last_error: LastError,
}

#[derive(Default)]
struct State {
    /// Rebalance events so far.
    rebalances: u64,
    assignment: Option<Arc<Assignment>>,
    failure: Option<Unresolved>,
    leaving: bool,
}

/// What this member may read and commit until the next rebalance.
pub struct Assignment {
    /// Group, generation and member as they were when the partitions were given. Never to be read again before a commit:
    /// by then librdkafka may have lost the membership and joined anew, and a newer generation, or none at all, would let
    /// offsets of partitions that are somebody else's now pass the coordinator's check.
    pub group: Arc<ConsumerGroupMetadata>,
    /// The lowest offset of each partition that is still to be read.
    pub starts: HashMap<i32, i64>,
}

impl Membership {
    pub fn new(group: Group, stop: CancellationToken) -> Self {
        Self { group, stop, state: Mutex::default(), last_error: LastError::default() }
    }

    /// Changes with every rebalance event. What was read before a change may be somebody else's now.
    pub fn rebalances(&self) -> u64 {
        self.lock().rebalances
    }

    /// `None` before the first assignment, and between two.
    pub fn assignment(&self) -> Option<Arc<Assignment>> {
        self.lock().assignment.clone()
    }

    /// Why an assignment could not be taken. The member has to leave.
    pub fn take_failure(&self) -> Option<Unresolved> {
        self.lock().failure.take()
    }

    /// From here on no partition is taken. Dropping a consumer serves events until the group is left, and that must not
    /// wait for offsets of a Kafka that may be frozen.
    pub fn leave(&self) {
        self.lock().leaving = true;
    }

    fn take(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<(), Unresolved> {
        let unreadable = |error: KafkaError| Unresolved::Unreadable(error.to_string());
        // First of all: until `assign` is called librdkafka cannot join anew, so this is the generation of this assignment.
        let group = consumer.group_metadata().ok_or_else(|| unreadable(KafkaError::Canceled))?;
        let starts = position::resolve(consumer, partitions, &self.group, || self.stop.is_cancelled())?;
        if consumer.assignment_lost() {
            return Err(Unresolved::Unreadable("the partitions were lost again at once".to_owned()));
        }
        let lowest = starts.elements().into_iter().map(|element| match element.offset() {
            Offset::Offset(offset) => (element.partition(), offset),
            _ => (element.partition(), 0),
        });
        let assignment = Arc::new(Assignment { group: Arc::new(group), starts: lowest.collect() });
        consumer.assign(&starts).map_err(unreadable)?;
        tracing::info!(partitions = ?sorted(&assignment.starts), "assigned");
        self.lock().assignment = Some(assignment);
        self.last_error.clear();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsumerContext for Membership {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        fail::fail_point!("consumer::in-rebalance", |_| std::process::abort());
        let leaving = {
            let mut state = self.lock();
            state.rebalances += 1;
            if state.assignment.take().is_some() {
                tracing::info!(lost = consumer.assignment_lost(), "revoked");
            }
            state.leaving
        };
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS && !leaving {
            match self.take(consumer, partitions) {
                Ok(()) => return,
                Err(failure) => self.lock().failure = Some(failure),
            }
        }
        // librdkafka waits for an answer to every event; without one this consumer could not even be closed.
        if let Err(error) = consumer.unassign() {
            self.lock().failure = Some(Unresolved::Unreadable(error.to_string()));
        }
    }
}

impl ClientContext for Membership {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "librdkafka consumer");
        self.last_error.record_line(message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka consumer");
        self.last_error.record(&error, reason);
    }
}

impl HasLastError for Membership {
    fn last_error(&self) -> &LastError {
        &self.last_error
    }
}

fn sorted(starts: &HashMap<i32, i64>) -> Vec<String> {
    let mut starts: Vec<_> = starts.iter().collect();
    starts.sort();
    starts.into_iter().map(|(partition, offset)| format!("{partition}@{offset}")).collect()
}
