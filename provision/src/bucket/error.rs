//! Why the bucket could not be made ready, or not be removed. No text in here holds a request, whose headers hold a signature.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use orderflow_service::s3::{NoCredentials, explain};

use super::OWNER_TAG;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `owner` is known if the bucket could be looked at.
    #[error("the bucket is {}; nothing was written", .owner.as_deref().map_or_else(
        || "another account's, or these credentials may not look at it".to_owned(), |owner| format!("{owner}'s")))]
    OwnedByAnother { owner: Option<String> },
    #[error("the bucket is in region {}, not in {expected}", found.as_deref().unwrap_or("another"))]
    OtherRegion { found: Option<String>, expected: String },
    #[error("the bucket does not exist")]
    Missing,
    #[error("the bucket is nobody's yet")]
    Unclaimed,
    #[error(
        "the bucket holds objects and no OrderFlow's tag; nothing was written: use an empty bucket, or tag this one \
         {OWNER_TAG}={owner}"
    )]
    NotEmpty { owner: String },
    #[error("the server knows no tags, so nobody can tell whose the bucket is; nothing was removed")]
    NoTags,
    #[error("the bucket's public access block is not complete")]
    NotPrivate,
    /// `what` is a verb and an object.
    #[error("these credentials may not {what}")]
    Denied { what: &'static str },
    #[error(transparent)]
    NoCredentials(NoCredentials),
    #[error("S3 is not to be had: {0}")]
    Unreachable(String),
    #[error("S3 refused to {what}: {reason}")]
    Refused { what: &'static str, reason: String },
    #[error("not done after {} s", .0.as_secs())]
    Deadline(Duration),
}

impl Error {
    /// May go away by itself: somebody who can wait tries again.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Deadline(_) => true,
            Self::NoCredentials(lacking) => lacking.is_transient(),
            _ => false,
        }
    }

    pub(super) fn of<E>(what: &'static str, error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let SdkError::ServiceError(context) = error else {
            let lacking = NoCredentials::from_error(error).map(Self::NoCredentials);
            return lacking.unwrap_or_else(|| Self::Unreachable(explain(error)));
        };
        let status = context.raw().status().as_u16();
        let code = error.code().unwrap_or("no code");
        let message = error.message().map(|message| format!(": {message}")).unwrap_or_default();
        let reason = format!("{code}{message} (HTTP {status})");
        match (status, code) {
            (429 | 500..=599, _) => Self::Unreachable(reason),
            _ => Self::of_code(what, code, reason),
        }
    }

    /// Of one object, for which there is no status: it was one of many in a request.
    pub(super) fn of_object(what: &'static str, error: &aws_sdk_s3::types::Error) -> Self {
        let code = error.code().unwrap_or("no code");
        let message = error.message().map(|message| format!(": {message}")).unwrap_or_default();
        Self::of_code(what, code, format!("{code}{message} (object {})", error.key().unwrap_or("unknown")))
    }

    fn of_code(what: &'static str, code: &str, reason: String) -> Self {
        match code {
            // The first one: somebody else is making or removing it right now.
            "OperationAborted" | "SlowDown" | "InternalError" | "ServiceUnavailable" => Self::Unreachable(reason),
            "AccessDenied" | "AllAccessDisabled" => Self::Denied { what },
            // A wrong key or signature has a code that says which.
            _ => Self::Refused { what, reason },
        }
    }
}
