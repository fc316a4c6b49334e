//! Why a topic could not be made ready, or it or its group not be removed.

use orderflow_service::kafka::BrokerError;
use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

use super::Difference;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the client's settings: {0}")]
    Settings(KafkaError),
    #[error("no broker of {brokers} answers as it should (address, TLS or log-in?): {reason}")]
    Unreachable { brokers: String, reason: Code },
    /// They are there.
    #[error("the brokers of {brokers} cannot be used: {trouble}")]
    Unusable { brokers: String, trouble: BrokerError },
    /// `what` is a verb and an object.
    #[error("the brokers refused to {what}: {reason}")]
    Refused { what: &'static str, reason: Code },
    #[error("the topic does not exist")]
    Missing,
    #[error("the topics are {owner}'s; nothing was written")]
    OwnedByAnother { owner: String },
    #[error("the topics are nobody's yet")]
    Unclaimed,
    /// The pipeline cannot work, and partitions that are added later move keys: somebody has to decide.
    #[error("the topic has too few partitions: {}, at least {} are needed", .0.found, .0.expected)]
    TooFewPartitions(Difference),
    #[error("the topic has partitions without a leader")]
    NoLeader,
    #[error("the topic was deleted, and is still there")]
    NotGone,
    #[error("the consumer group still has members")]
    GroupHasMembers,
}

impl Error {
    /// May go away by itself: somebody who can wait tries again.
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

    /// Of all topics alike.
    pub(super) fn is_about_the_brokers(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unusable { .. })
    }

    pub(super) fn of(what: &'static str, brokers: &str, reason: Code) -> Self {
        if is_unreachable(reason) {
            Self::Unreachable { brokers: brokers.to_owned(), reason }
        } else {
            Self::Refused { what, reason }
        }
    }
}

/// While brokers come, go or are too busy, there are too few of them, or the one that knows the group does not know it yet.
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
