//! The vocabulary of the status: condition types, reasons, and what a reason means for the next try. Messages hold neither
//! secrets nor anything random, so that an unchanged state has an unchanged status.

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

/// When somebody should look again, and at what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// All is well, or will be without anybody's help.
    Fine,
    /// The cluster has to change: a Secret, the spec. A watch notices.
    WaitForChange,
    /// Somebody has to decide: the thing is another's, or refuses us. Looked at again with the next probe, no sooner, since
    /// nothing here tells us of a change.
    NeedsUser,
    /// Goes away by itself: tried again with backoff.
    Transient,
    /// Somebody else wrote at the same moment: tried again at once, on what is there now.
    Conflict,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $class:ident,)+) => {
        /// Why a condition is as it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            pub fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)+ }
            }

            /// What it means, for the documentation.
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
    /// It is not ours, or not the one that was meant: no pod may work on it.
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
    /// Everything is as the spec says, and runs.
    Available => Fine,
    /// It is there, ours and as it should be.
    Provisioned => Fine,
    /// The topics work, but some of their settings are not as the spec says; nobody changes those of an existing topic.
    TopicsDiffer => Fine,
    /// Pods are being started or replaced.
    Progressing => Fine,
    /// `replicas: 0` is what the spec says.
    ScaledToZero => Fine,
    /// Not looked at yet, or what comes before it failed.
    NotChecked => Fine,
    /// The producers wait for the first shard.
    WaitingForShard => Fine,
    /// The consumers wait for the topics.
    WaitingForTopic => Fine,
    /// The annotation `orderflow.dev/paused` is `true`: nothing is looked at and nothing is changed.
    PauseRequested => Fine,
    /// The resource is not paused.
    NotPaused => Fine,
    /// The resource is being deleted, and what it made is removed, unless it is paused.
    Deleting => Fine,
    /// A Secret that the spec names does not exist; its arrival is noticed at once.
    SecretMissing => WaitForChange,
    /// A Secret that the spec names does not have that key.
    SecretKeyMissing => WaitForChange,
    /// A value in a Secret cannot be used: it is not a DSN, not PEM or not text, it has an invisible character, or the DSN names
    /// a file or an address that the operator refuses.
    SecretInvalid => WaitForChange,
    /// The spec says something that cannot be, which normally the API server refuses before, or names an address that the
    /// operator refuses.
    SpecInvalid => WaitForChange,
    /// The resource does not fit its definition (written under an older one?) and cannot be read.
    Undecodable => WaitForChange,
    /// Another OrderFlow has it, and keeps it; the annotation `orderflow.dev/adopt-from` takes databases, bucket and topics over.
    OwnedByAnother => NeedsUser,
    /// The database is another shard's: a swapped or repointed DSN. Nothing is written, and `orderflow.dev/adopt-from` does not
    /// help.
    ShardMismatch => NeedsUser,
    /// The database was made for another topic or bucket.
    MadeForAnother => NeedsUser,
    /// Two shards' DSNs name the same database.
    SameDatabase => NeedsUser,
    /// The database has tables of our names that nobody claims.
    DatabaseNotEmpty => NeedsUser,
    /// The bucket holds objects and no tag of an OrderFlow. Use an empty bucket, or tag this one with its owner.
    BucketNotEmpty => NeedsUser,
    /// The server cannot hold a shard, or its schema was changed by hand.
    DatabaseUnsuitable => NeedsUser,
    /// The topic has fewer partitions than are needed.
    TooFewPartitions => NeedsUser,
    /// The server understood, and refused: credentials, permissions, a limit.
    Refused => NeedsUser,
    /// The spec names no credentials of the bucket, and the operator may not use its own for it: the name matches no
    /// `--bucket-pattern`, or there is an `endpoint`.
    OwnIdentityRefused => NeedsUser,
    /// An object of that name exists and is not ours; it is left alone.
    ChildConflict => NeedsUser,
    /// The Deployment made no progress within its deadline: look at its pods.
    Stalled => NeedsUser,
    /// The server does not answer, or says that it cannot right now.
    Unreachable => Transient,
    /// The API server did not take a change.
    ApplyFailed => Transient,
    /// The reconcile of this resource panicked, which is a bug in the operator. The operator's log has the backtrace. Other
    /// resources are not affected.
    InternalError => Transient,
    /// Somebody else changed the same object at the same moment.
    Conflict => Conflict,
}

/// Why a part is not as it should be.
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

    /// Puts the name of the part before the message.
    #[must_use]
    pub fn of(self, part: impl fmt::Display) -> Self {
        Self { message: format!("{part}: {}", self.message), ..self }
    }

    /// Adds where to look, if that is known.
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

    /// What `True` means, for the documentation.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Ready => "All of the others, but for Paused, are true. While paused it keeps its last value.",
            Self::ShardsReady => "Every shard's database is reachable, ours, the right one, and has the newest schema.",
            Self::BucketReady => "The bucket exists, is ours and, where the server can say so, private.",
            Self::TopicReady => "The four topics exist, have enough partitions, and each partition has a leader.",
            Self::ProducerAvailable => {
                "The producers' Deployment is as the spec says and enough of its pods are ready."
            }
            Self::ConsumerAvailable => {
                "The consumers' Deployment is as the spec says and enough of its pods are ready."
            }
            Self::Paused => "The resource is left alone, because its annotation says so.",
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
    fn a_reason_says_when_to_look_again() {
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
    fn every_reason_and_kind_fits_the_rules_of_a_condition() {
        let names = Reason::ALL.iter().map(|reason| reason.as_str()).chain(Kind::ALL.iter().map(|kind| kind.as_str()));
        for name in names {
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()) && name.starts_with(char::is_uppercase), "{name}");
        }
        assert!(Reason::ALL.iter().all(|reason| reason.explanation().ends_with('.')));
    }
}
