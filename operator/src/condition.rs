//! Condition types, reasons, and the retry that each reason causes. Messages contain neither secrets nor anything
//! random, so that an unchanged state has an unchanged status.

use std::fmt;

/// The conditions of an OrderFlow, in the order in which `status` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Ready,
    ShardsReady,
    BucketReady,
    TopicReady,
    ProducerAvailable,
    ConsumerAvailable,
    Paused,
}

/// Decides when the resource is reconciled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No problem, or one that resolves itself.
    Fine,
    /// A Secret or the spec has to change. A watch reports that.
    WaitForChange,
    /// A person has to act: a backend belongs to another owner, or refuses the request. Reconciled again with the next
    /// probe, because no watch reports a change.
    NeedsUser,
    /// Resolves itself. Retried with backoff.
    Transient,
    /// Another client wrote at the same moment. Retried at once on the current object.
    Conflict,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $class:ident,)+) => {
        /// The reason of a condition.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            pub fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)+ }
            }

            /// Returns the explanation for the reference.
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc, " ",)+).trim(),)+ }
            }

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }
        }
    };
}

impl Reason {
    /// Returns true if the backend belongs to another owner or is not the intended one, so that no pod may use it.
    pub fn is_about_ownership(self) -> bool {
        matches!(
            self,
            Self::OwnedByAnother
                | Self::ShardMismatch
                | Self::MadeForAnother
                | Self::SameDatabase
                | Self::DatabaseNotEmpty
                | Self::BucketNotEmpty
        )
    }
}

reasons! {
    /// The Deployment matches the spec and its pods are available.
    Available => Fine,
    /// The backend exists, belongs to this resource and matches the spec.
    Provisioned => Fine,
    /// The topics work, but some settings differ from the spec. The operator never changes the settings of an existing
    /// topic.
    TopicsDiffer => Fine,
    /// Pods are starting or being replaced.
    Progressing => Fine,
    /// The spec asks for no pods (`replicas: 0`).
    ScaledToZero => Fine,
    /// This part was not checked yet, or an earlier step failed.
    NotChecked => Fine,
    /// The producers are created when the first shard is ready.
    WaitingForShard => Fine,
    /// The consumers are created when the topics are ready.
    WaitingForTopic => Fine,
    /// The annotation `orderflow.dev/paused` is `true`: the operator checks and changes nothing.
    PauseRequested => Fine,
    /// The resource is not paused.
    NotPaused => Fine,
    /// The resource is being deleted. The operator removes what it created, unless the resource is paused.
    Deleting => Fine,
    /// A Secret that the spec names does not exist. The operator continues as soon as it is created.
    SecretMissing => WaitForChange,
    /// A Secret that the spec names lacks the key that the spec names.
    SecretKeyMissing => WaitForChange,
    /// A value in a Secret is unusable. It is not a DSN, PEM or text, it has an invisible character, or its DSN names a
    /// file or an address that the operator refuses.
    SecretInvalid => WaitForChange,
    /// The spec contradicts itself, or names an address that the operator refuses. The API server rejects most such
    /// specs.
    SpecInvalid => WaitForChange,
    /// The stored resource does not fit its definition, perhaps because an older definition was in force when it was
    /// written. The operator cannot reconcile it.
    Undecodable => WaitForChange,
    /// The backend belongs to another OrderFlow. The annotation `orderflow.dev/adopt-from` takes over databases, bucket
    /// and topics.
    OwnedByAnother => NeedsUser,
    /// The database belongs to another shard: a DSN is swapped or repointed. The operator writes nothing, and
    /// `orderflow.dev/adopt-from` does not change that.
    ShardMismatch => NeedsUser,
    /// The database was set up for another topic or bucket.
    MadeForAnother => NeedsUser,
    /// The DSNs of two shards name the same database.
    SameDatabase => NeedsUser,
    /// The database has tables of OrderFlow's names and no recorded owner.
    DatabaseNotEmpty => NeedsUser,
    /// The bucket holds objects and has no owner tag. Use an empty bucket, or tag this one `orderflow.dev/owner`.
    BucketNotEmpty => NeedsUser,
    /// The server cannot hold a shard (version, encoding, standby), or an applied migration was edited.
    DatabaseUnsuitable => NeedsUser,
    /// The topic has fewer partitions than the pipeline needs.
    TooFewPartitions => NeedsUser,
    /// The server refused the request: credentials, permissions or a limit.
    Refused => NeedsUser,
    /// The spec names no credentials for the bucket, and the operator may not use its own: the name matches no
    /// `--bucket-pattern`, or the spec has an `endpoint`.
    OwnIdentityRefused => NeedsUser,
    /// An object with the child's name exists and does not belong to this resource. The operator leaves it alone.
    ChildConflict => NeedsUser,
    /// The Deployment made no progress within its deadline. Inspect its pods.
    Stalled => NeedsUser,
    /// The server does not answer, or reports that it is temporarily unavailable.
    Unreachable => Transient,
    /// The API server did not accept a change.
    ApplyFailed => Transient,
    /// The reconcile of this resource panicked, which is a bug in the operator. The operator's log has the backtrace. Other
    /// resources are not affected.
    InternalError => Transient,
    /// Another client changed the same object at the same moment.
    Conflict => Conflict,
}

/// A problem of one part of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    pub reason: Reason,
    pub message: String,
}

impl Problem {
    pub fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string() }
    }

    /// Prefixes the message with the name of the part.
    #[must_use]
    pub fn in_part(self, part: impl fmt::Display) -> Self {
        Self { message: format!("{part}: {}", self.message), ..self }
    }

    /// Appends the place to inspect, if it is known.
    #[must_use]
    pub fn see(self, place: Option<impl fmt::Display>) -> Self {
        match place {
            Some(place) => Self { message: format!("{}; see {place}", self.message), ..self },
            None => self,
        }
    }

    pub fn class(&self) -> Class {
        self.reason.class()
    }
}

impl Kind {
    pub const ALL: &[Self] = &[
        Self::Ready,
        Self::ShardsReady,
        Self::BucketReady,
        Self::TopicReady,
        Self::ProducerAvailable,
        Self::ConsumerAvailable,
        Self::Paused,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::ShardsReady => "ShardsReady",
            Self::BucketReady => "BucketReady",
            Self::TopicReady => "TopicReady",
            Self::ProducerAvailable => "ProducerAvailable",
            Self::ConsumerAvailable => "ConsumerAvailable",
            Self::Paused => "Paused",
        }
    }

    /// Returns the meaning of `True` for the reference.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Ready => "Every other condition except Paused is true. While paused it keeps its last value.",
            Self::ShardsReady => {
                "Every shard's database is reachable, belongs to this resource and this shard, and has the newest schema."
            }
            Self::BucketReady => {
                "The bucket exists, belongs to this resource and is private, as far as the server can tell."
            }
            Self::TopicReady => "The four topics exist, have enough partitions, and each partition has a leader.",
            Self::ProducerAvailable => {
                "The producers' Deployment matches the spec and enough of its pods are available."
            }
            Self::ConsumerAvailable => {
                "The consumers' Deployment matches the spec and enough of its pods are available."
            }
            Self::Paused => "The annotation `orderflow.dev/paused` pauses the resource.",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_class_that_decides_the_retry() {
        for (reason, class) in [
            (Reason::Progressing, Class::Fine),
            (Reason::SecretMissing, Class::WaitForChange),
            (Reason::ShardMismatch, Class::NeedsUser),
            (Reason::OwnedByAnother, Class::NeedsUser),
            (Reason::Unreachable, Class::Transient),
            (Reason::Conflict, Class::Conflict),
        ] {
            assert_eq!(reason.class(), class, "{reason}");
        }
    }

    #[test]
    fn reasons_and_types_are_valid_in_a_condition() {
        let names = Reason::ALL.iter().map(|reason| reason.as_str()).chain(Kind::ALL.iter().map(|kind| kind.as_str()));
        for name in names {
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()) && name.starts_with(char::is_uppercase), "{name}");
        }
        assert!(Reason::ALL.iter().all(|reason| reason.explanation().ends_with('.')));
    }
}
