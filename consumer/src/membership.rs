//! The membership of this process in its consumer group: takes assigned partitions at the group's committed offsets,
//! and releases revoked ones. librdkafka calls it during the pipeline's polls; the pipeline then reads its state.

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

/// The partitions that this member may read and commit until the next rebalance.
pub struct Assignment {
    /// Group, generation and member at the time of the assignment. A commit must use these and not read them again:
    /// librdkafka may have lost the membership and rejoined. With a newer generation, or none, the coordinator would
    /// accept offsets of partitions that now belong to another member.
    pub group: Arc<ConsumerGroupMetadata>,
    /// The lowest unread offset of each partition.
    pub starts: HashMap<i32, i64>,
}

impl Membership {
    pub fn new(group: Group, stop: CancellationToken) -> Self {
        Self { group, stop, state: Mutex::default(), last_error: LastError::default() }
    }

    /// Returns the number of rebalance events. Records that were read before it changed may belong to another member
    /// now.
    pub fn rebalances(&self) -> u64 {
        self.lock().rebalances
    }

    /// Returns the assignment, or `None` before the first one and between two.
    pub fn assignment(&self) -> Option<Arc<Assignment>> {
        self.lock().assignment.clone()
    }

    /// Takes the reason why an assignment could not be taken. The member then has to leave.
    pub fn take_failure(&self) -> Option<Unresolved> {
        self.lock().failure.take()
    }

    /// Takes no more partitions. Dropping a consumer serves rebalance events until it has left the group, and these
    /// must not wait for the offsets of a Kafka that may be frozen.
    pub fn leave(&self) {
        self.lock().leaving = true;
    }

    fn take(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<(), Unresolved> {
        let unreadable = |error: KafkaError| Unresolved::Unreadable(error.to_string());
        // Read first: librdkafka cannot rejoin before `assign` is called, so this is the generation of this assignment.
        let group = consumer.group_metadata().ok_or_else(|| unreadable(KafkaError::Canceled))?;
        let starts = position::resolve(consumer, partitions, &self.group, || self.stop.is_cancelled())?;
        if consumer.assignment_lost() {
            return Err(Unresolved::Unreadable("the partitions were lost while their offsets were read".to_owned()));
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
        // librdkafka waits for an answer to every event. Without one, this consumer could not even be closed.
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
