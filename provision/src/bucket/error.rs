//! Errors of the bucket. No message contains a request, because its headers contain a signature.

use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use orderflow_service::s3::{NoCredentials, explain};

use super::OWNER_TAG;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bucket of another owner, who is known if the credentials may read its tags.
    #[error("the bucket belongs to {}; nothing was written", .owner.as_deref().map_or_else(
        || "another account, or these credentials may not read it".to_owned(), ToOwned::to_owned))]
    OwnedByAnother { owner: Option<String> },
    #[error("the bucket is in region {}, not in {expected}", found.as_deref().unwrap_or("another"))]
    OtherRegion { found: Option<String>, expected: String },
    #[error("the bucket does not exist")]
    Missing,
    #[error("the bucket has no owner yet")]
    Unclaimed,
    #[error(
        "the bucket holds objects and has no owner tag; nothing was written: use an empty bucket, or tag this one \
         {OWNER_TAG}={owner}"
    )]
    NotEmpty { owner: String },
    #[error("the server does not support tags, so the bucket's owner is unknown; nothing was removed")]
    NoTags,
    #[error("the bucket's public access block is incomplete")]
    NotPrivate,
    /// The credentials lack a permission. `what` is a verb and an object.
    #[error("these credentials may not {what}")]
    Denied { what: &'static str },
    #[error(transparent)]
    NoCredentials(NoCredentials),
    #[error("S3 is unavailable: {0}")]
    Unreachable(String),
    #[error("S3 refused to {what}: {reason}")]
    Refused { what: &'static str, reason: String },
    #[error("not finished within {} s", .0.as_secs())]
    Deadline(Duration),
}

impl Error {
    /// Returns true if the error may resolve itself, so that a retry makes sense.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Deadline(_) => true,
            Self::NoCredentials(lacking) => lacking.is_transient(),
            _ => false,
        }
    }

    pub(super) fn from_sdk<E>(what: &'static str, error: &SdkError<E>) -> Self
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
            _ => Self::from_code(what, code, reason),
        }
    }

    /// Converts the error of one object of a request for many, which has no HTTP status.
    pub(super) fn from_object(what: &'static str, error: &aws_sdk_s3::types::Error) -> Self {
        let code = error.code().unwrap_or("no code");
        let message = error.message().map(|message| format!(": {message}")).unwrap_or_default();
        Self::from_code(what, code, format!("{code}{message} (object {})", error.key().unwrap_or("unknown")))
    }

    fn from_code(what: &'static str, code: &str, reason: String) -> Self {
        match code {
            // The first one: another client creates or removes the bucket right now.
            "OperationAborted" | "SlowDown" | "InternalError" | "ServiceUnavailable" => Self::Unreachable(reason),
            "AccessDenied" | "AllAccessDisabled" => Self::Denied { what },
            // A wrong key or signature has a code of its own.
            _ => Self::Refused { what, reason },
        }
    }
}
