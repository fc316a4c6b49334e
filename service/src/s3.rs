//! The options of all S3 clients.

use std::{error::Error, io, time::Duration};

use aws_config::{
    BehaviorVersion, Region, default_provider::credentials::DefaultCredentialsChain, identity::IdentityCache, imds,
    retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::{
    Client,
    config::{Credentials, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient},
    error::{ConnectorError, DisplayErrorContext, ErrorMetadata, SdkError},
};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use crate::secret::{self, Secrets};

#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(next_help_heading = "S3")]
pub struct Settings {
    /// S3 endpoint, such as http://localhost:4566; absent: AWS
    #[arg(long, env = "S3_ENDPOINT")]
    pub s3_endpoint: Option<String>,

    /// Bucket of the receipts
    #[arg(long, env = "S3_BUCKET", default_value = "order-receipts")]
    pub s3_bucket: String,

    /// Region of the bucket. The access key is in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN
    /// for temporary credentials), or in the files that AWS_ACCESS_KEY_ID_FILE and the like name; these have no flags.
    /// Without an access key: the default AWS chain (web identity, instance role, …)
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    pub aws_region: String,

    /// Access key, which [`read_secrets`](Secrets::read_secrets) reads with its secret
    #[arg(skip)]
    pub aws_access_key_id: Option<String>,

    /// Secret of the access key
    #[arg(skip)]
    pub aws_secret_access_key: Option<SecretString>,

    /// Session token of temporary credentials
    #[arg(skip)]
    pub aws_session_token: Option<SecretString>,

    /// Longest wait for an answer from S3, in milliseconds
    #[arg(long, env = "S3_TIMEOUT_MS", default_value_t = 5000)]
    pub s3_timeout_ms: u64,
}

impl Secrets for Settings {
    fn read_secrets(&mut self) -> Result<(), String> {
        let id = secret::read("AWS_ACCESS_KEY_ID")?;
        self.aws_access_key_id = id.map(|id| id.expose_secret().to_owned());
        self.aws_secret_access_key = secret::read("AWS_SECRET_ACCESS_KEY")?;
        self.aws_session_token = secret::read("AWS_SESSION_TOKEN")?;
        match (&self.aws_access_key_id, &self.aws_secret_access_key) {
            (Some(_), None) => {
                Err("AWS_ACCESS_KEY_ID: needs AWS_SECRET_ACCESS_KEY or AWS_SECRET_ACCESS_KEY_FILE".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl Settings {
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.s3_timeout_ms)
    }
}

/// Creates the HTTP client, with connections and the system's certificates, which several S3 clients can share.
pub fn http() -> SharedHttpClient {
    Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https()
}

/// Creates a client that tries once, within the timeout. Retries are up to the caller, who knows what else waits.
pub async fn client(settings: &Settings, http: SharedHttpClient) -> Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(settings.timeout().min(Duration::from_secs(2)))
        .operation_timeout(settings.timeout())
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .region(Region::new(settings.aws_region.clone()))
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts);
    if let (Some(id), Some(secret)) = (&settings.aws_access_key_id, &settings.aws_secret_access_key) {
        let session = settings.aws_session_token.as_ref().map(|token| token.expose_secret().to_owned());
        loader = loader.credentials_provider(Credentials::new(id, secret.expose_secret(), session, None, "settings"));
    } else {
        // Shorter than the request's timeout, so that the error names the credentials as the cause.
        let cache = IdentityCache::lazy().load_timeout(settings.timeout().mul_f64(0.8)).build();
        loader = loader.credentials_provider(default_chain(settings).await).identity_cache(cache);
    }
    if let Some(endpoint) = &settings.s3_endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let config = aws_sdk_s3::config::Builder::from(&loader.load().await)
        // Servers other than AWS rarely resolve BUCKET.HOST, and not all support the newer checksums.
        .force_path_style(settings.s3_endpoint.is_some())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    Client::from_conf(config)
}

/// Returns the default chain: the first credentials of a profile, a web identity (IRSA), a container (EKS Pod Identity)
/// or the instance.
async fn default_chain(settings: &Settings) -> DefaultCredentialsChain {
    // On a machine outside of EC2 each try takes its full timeout of 1 s, and the default is four tries.
    let imds = imds::Client::builder().max_attempts(1).build();
    DefaultCredentialsChain::builder().region(Region::new(settings.aws_region.clone())).imds_client(imds).build().await
}

/// A reason why a request to AWS could not be signed, and was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCredentials {
    #[error(
        "there are no AWS credentials: no keys, no web identity (IRSA), no role of the container (EKS Pod Identity) or of \
         the instance"
    )]
    Missing,
    #[error("AWS gives no credentials: {0}")]
    Refused(String),
    #[error("AWS gives no credentials right now: {0}")]
    NotNow(&'static str),
}

impl NoCredentials {
    /// Returns the reason, or `None` if the request failed for another one.
    pub fn from_error<E, R>(error: &SdkError<E, R>) -> Option<Self>
    where
        E: Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        // The text of the identity cache's error, which has no public type.
        const SLOW: &str = "identity resolver timed out";
        if !matches!(error, SdkError::DispatchFailure(_)) {
            return None;
        }
        let causes = causes(error);
        if causes.iter().any(|cause| cause.to_string().starts_with(SLOW)) {
            return Some(Self::NotNow("no answer in time"));
        }
        let place = causes.iter().position(|cause| cause.is::<CredentialsError>())?;
        let causes = &causes[place..];
        Some(match causes[0].downcast_ref() {
            Some(CredentialsError::CredentialsNotLoaded(_)) => Self::Missing,
            Some(CredentialsError::ProviderTimedOut(_)) => Self::NotNow("no answer in time"),
            _ if causes.iter().any(|cause| cause.is::<ConnectorError>()) => Self::NotNow("cannot connect"),
            _ => Self::from_answer(causes),
        })
    }

    /// Classifies an answer of STS or of a metadata service.
    fn from_answer(causes: &[&(dyn Error + 'static)]) -> Self {
        /// Error codes, without the suffix `Exception`, whose cause a person has to fix. Any other error may be
        /// temporary.
        const REFUSALS: [&str; 9] = [
            "AccessDenied",
            "ExpiredToken",
            "IdpRejectedClaim",
            "InvalidClientTokenId",
            "InvalidIdentityToken",
            "MalformedPolicyDocument",
            "PackedPolicyTooLarge",
            "RegionDisabled",
            "ValidationError",
        ];
        /// Status in errors of the agents of containers and instances: `… StatusCode(403)`.
        const STATUS: &str = "StatusCode(4";
        /// Statuses of requests that can be repeated.
        const AGAIN: [&str; 2] = ["StatusCode(408)", "StatusCode(429)"];

        let text = causes.last().map(ToString::to_string).unwrap_or_default();
        // An error with a type of the SDK starts with its code. The text of the metadata also has the request's id.
        let (code, message) = match causes.iter().find_map(|cause| cause.downcast_ref::<ErrorMetadata>()) {
            Some(answer) => (answer.code().unwrap_or_default(), answer.message().unwrap_or_default()),
            None => text.split_once(": ").unwrap_or((&text, "")),
        };
        let code = code.split(' ').next().unwrap_or_default().trim_end_matches("Exception");
        // An I/O error of the file with the token, not of a connection.
        let is_local = causes
            .iter()
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .any(|error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied));
        if REFUSALS.iter().any(|refusal| refusal.eq_ignore_ascii_case(code)) {
            // AWS's message has the token's age, which changes with each answer.
            let message = if code.starts_with("ExpiredToken") { "the token has expired" } else { message };
            Self::Refused(format!("{code}: {message}"))
        } else if is_local || (text.contains(STATUS) && !AGAIN.iter().any(|again| text.contains(again))) {
            Self::Refused(text)
        } else {
            Self::NotNow("AWS reports a temporary failure")
        }
    }

    /// Returns true if credentials may come later. This includes missing ones, because a metadata service that does not
    /// answer gives the same error.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// Returns the error and its causes.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut causes = vec![error];
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause);
        next = cause.source();
    }
    causes
}

/// Explains an error with its causes, without the request, whose headers have a signature.
pub fn explain<E, R>(error: &SdkError<E, R>) -> String
where
    E: Error + 'static,
    R: std::fmt::Debug + 'static,
{
    if let Some(reason) = NoCredentials::from_error(error) {
        return reason.to_string();
    }
    match error {
        SdkError::TimeoutError(_) => "no answer in time".to_owned(),
        SdkError::ServiceError(context) => format!("{}", DisplayErrorContext(context.err())),
        SdkError::DispatchFailure(failure) if failure.is_io() => "cannot connect".to_owned(),
        other => format!("{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Answer(&'static str);

    #[test]
    fn only_an_error_that_a_person_has_to_fix_is_a_refusal() {
        let not_now = NoCredentials::NotNow("AWS reports a temporary failure");
        let read = |text| NoCredentials::from_answer(&[&Answer(text)]);
        for passing in [
            "IdpCommunicationErrorException [IDPCommunicationErrorException]: the provider does not answer",
            "Non-success status from HTTP credential provider: StatusCode(503)",
            "Non-success status from HTTP credential provider: StatusCode(429)",
            "expected value at line 1",
        ] {
            assert_eq!(read(passing), not_now, "{passing}");
        }
        let expired = "ExpiredTokenException: Token expired: current date/time 1639523040 must be before 1639523000";
        assert_eq!(read(expired), NoCredentials::Refused("ExpiredToken: the token has expired".to_owned()));
        let rejected = "IdpRejectedClaimException [IDPRejectedClaimException]: no such audience";
        assert_eq!(read(rejected), NoCredentials::Refused("IdpRejectedClaim: no such audience".to_owned()));
        let forbidden = "Non-success status from HTTP credential provider: StatusCode(403)";
        assert_eq!(read(forbidden), NoCredentials::Refused(forbidden.to_owned()));

        let answered = |code| NoCredentials::from_answer(&[&ErrorMetadata::builder().code(code).message("no").build()]);
        assert_eq!(answered("AccessDenied"), NoCredentials::Refused("AccessDenied: no".to_owned()));
        assert_eq!(answered("Throttling"), not_now);
    }
}
