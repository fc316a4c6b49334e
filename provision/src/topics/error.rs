//! Why a topic could not be made ready.

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

use super::Difference;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the client's settings: {0}")]
    Settings(KafkaError),
    #[error("no broker of {brokers} answers as it should (address, TLS or log-in?): {reason}")]
    Unreachable { brokers: String, reason: Code },
    /// `what` is a verb and an object.
    #[error("the brokers refused to {what}: {reason}")]
    Refused { what: &'static str, reason: Code },
    #[error("the topic does not exist")]
    Missing,
    /// The pipeline cannot work, and partitions that are added later move keys: somebody has to decide.
    #[error("the topic has too few partitions: {}, at least {} are needed", .0.found, .0.expected)]
    TooFewPartitions(Difference),
    #[error("the topic has partitions without a leader")]
    NoLeader,
}

impl Error {
    /// May go away by itself: somebody who can wait tries again.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoLeader => true,
            // While brokers are still coming up, there are too few of them.
            Self::Refused { reason, .. } => is_transient(*reason) || *reason == Code::InvalidReplicationFactor,
            Self::Settings(_) | Self::Missing | Self::TooFewPartitions(_) => false,
        }
    }

    pub(super) fn of(what: &'static str, brokers: &str, reason: Code) -> Self {
        if is_transient(reason) {
            Self::Unreachable { brokers: brokers.to_owned(), reason }
        } else {
            Self::Refused { what, reason }
        }
    }
}

fn is_transient(code: Code) -> bool {
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
