//! Errors of topics and consumer groups.

use orderflow_service::kafka::BrokerError;
use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

use super::Difference;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the client's settings: {0}")]
    Settings(KafkaError),
    #[error("connect to the brokers of {brokers}: {reason} (check address, TLS and login)")]
    Unreachable { brokers: String, reason: Code },
    /// The brokers answer but refuse the client.
    #[error("the brokers of {brokers} are unusable: {trouble}")]
    Unusable { brokers: String, trouble: BrokerError },
    /// The brokers refused a request. `what` is a verb and an object.
    #[error("the brokers refused to {what}: {reason}")]
    Refused { what: &'static str, reason: Code },
    #[error("the topic does not exist")]
    Missing,
    #[error("the topics belong to {owner}; nothing was written")]
    OwnedByAnother { owner: String },
    #[error("the topics have no owner yet")]
    Unclaimed,
    /// The pipeline cannot work. Partitions that are added later move keys, so a person has to decide.
    #[error("the topic has too few partitions: {}, at least {} are needed", .0.found, .0.expected)]
    TooFewPartitions(Difference),
    #[error("the topic has partitions without a leader")]
    NoLeader,
    #[error("the topic was deleted and still exists")]
    NotGone,
    #[error("the consumer group still has members")]
    GroupHasMembers,
}

impl Error {
    /// Returns true if the error may resolve itself, so that a retry makes sense.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoLeader | Self::NotGone | Self::GroupHasMembers => true,
            Self::Refused { reason, .. } => is_not_yet(*reason),
            Self::Unusable { trouble, .. } => !trouble.is_refusal(),
            Self::Settings(_)
            | Self::Missing
            | Self::OwnedByAnother { .. }
            | Self::Unclaimed
            | Self::TooFewPartitions(_) => false,
        }
    }

    /// Returns true if the error concerns all topics.
    pub(super) fn is_about_the_brokers(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unusable { .. })
    }

    pub(super) fn from_code(what: &'static str, brokers: &str, reason: Code) -> Self {
        if is_unreachable(reason) {
            Self::Unreachable { brokers: brokers.to_owned(), reason }
        } else {
            Self::Refused { what, reason }
        }
    }
}

/// Returns true for codes that pass: brokers start, stop or are too busy, there are too few of them, or a new
/// coordinator does not know the group yet.
fn is_not_yet(code: Code) -> bool {
    matches!(
        code,
        Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::Fail
            | Code::InvalidReplicationFactor
            | Code::KafkaStorageError
            | Code::NotCoordinator
            | Code::NotLeaderForPartition
            | Code::ReplicaNotAvailable
            | Code::ThrottlingQuotaExceeded
            | Code::TimedOutQueue
            | Code::Unknown
    )
}

fn is_unreachable(code: Code) -> bool {
    matches!(
        code,
        Code::AllBrokersDown
            | Code::BrokerNotAvailable
            | Code::BrokerTransportFailure
            | Code::LeaderNotAvailable
            | Code::NetworkException
            | Code::NotController
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::Resolve
    )
}
