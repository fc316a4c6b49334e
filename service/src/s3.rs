//! The one place where an S3 client is built.

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
    /// S3 endpoint, as in http://localhost:4566; absent: AWS
    #[arg(long, env = "S3_ENDPOINT")]
    pub s3_endpoint: Option<String>,

    /// Bucket of the receipts
    #[arg(long, env = "S3_BUCKET", default_value = "order-receipts")]
    pub s3_bucket: String,

    /// Region of the bucket. The access key is AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, of temporary credentials with
    /// AWS_SESSION_TOKEN, or in the files that AWS_ACCESS_KEY_ID_FILE and so on name: they have no flags. Absent: the default
    /// AWS chain (web identity, instance role, …)
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

    /// Longest wait for an answer of S3, in milliseconds
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

/// Connections, and the system's certificates: what several clients can share.
pub fn http() -> SharedHttpClient {
    Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https()
}

/// A client that tries once and within the timeout: retrying is the caller's business, who knows what else waits.
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
        // Within the request's own time: who waits for credentials is to hear that it is those that did not come.
        let cache = IdentityCache::lazy().load_timeout(settings.timeout().mul_f64(0.8)).build();
        loader = loader.credentials_provider(default_chain(settings).await).identity_cache(cache);
    }
    if let Some(endpoint) = &settings.s3_endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    let config = aws_sdk_s3::config::Builder::from(&loader.load().await)
        // Servers other than AWS rarely resolve BUCKET.HOST, and not all know the newer checksums.
        .force_path_style(settings.s3_endpoint.is_some())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    Client::from_conf(config)
}

/// A profile's, a web identity's (IRSA), a container's (EKS Pod Identity) or the instance's: the first that there is.
async fn default_chain(settings: &Settings) -> DefaultCredentialsChain {
    // On a machine that is no instance each try takes its whole second, and by default there are four.
    let imds = imds::Client::builder().max_attempts(1).build();
    DefaultCredentialsChain::builder().region(Region::new(settings.aws_region.clone())).imds_client(imds).build().await
}

/// Why a request to AWS was not even sent: there was nothing to sign it with.
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
    /// None: the request failed for another reason.
    pub fn from_error<E, R>(error: &SdkError<E, R>) -> Option<Self>
    where
        E: Error + 'static,
        R: std::fmt::Debug + 'static,
    {
        // The identity cache's own, which has no public type.
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
            _ => Self::answered(causes),
        })
    }

    /// By STS, or by a metadata service.
    fn answered(causes: &[&(dyn Error + 'static)]) -> Self {
        /// What somebody has to mend; anything else may be a trouble of AWS' own, and pass. Without `Exception`, with which
        /// most of them end.
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
        /// What the agents of containers and instances say: `… StatusCode(403)`. Asked too often is not refused.
        const STATUS: &str = "StatusCode(4";
        const AGAIN: [&str; 2] = ["StatusCode(408)", "StatusCode(429)"];

        let text = causes.last().map(ToString::to_string).unwrap_or_default();
        // What the SDK has a type for names itself in its text; the metadata's own text also holds the request's id.
        let (code, message) = match causes.iter().find_map(|cause| cause.downcast_ref::<ErrorMetadata>()) {
            Some(answer) => (answer.code().unwrap_or_default(), answer.message().unwrap_or_default()),
            None => text.split_once(": ").unwrap_or((&text, "")),
        };
        let code = code.split(' ').next().unwrap_or_default().trim_end_matches("Exception");
        // Of the file with the token, not of a connection.
        let is_local = causes
            .iter()
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .any(|error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied));
        if REFUSALS.iter().any(|refusal| refusal.eq_ignore_ascii_case(code)) {
            // How long ago a token expired changes with each answer.
            let told = if code.starts_with("ExpiredToken") { "the token has expired" } else { message };
            Self::Refused(format!("{code}: {told}"))
        } else if is_local || (text.contains(STATUS) && !AGAIN.iter().any(|again| text.contains(again))) {
            Self::Refused(text)
        } else {
            Self::NotNow("AWS has troubles of its own")
        }
    }

    /// Also when there are none: a metadata service that does not answer looks the same.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// The error and what is behind it.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> Vec<&'a (dyn Error + 'static)> {
    let mut causes = vec![error];
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause);
        next = cause.source();
    }
    causes
}

/// What went wrong, with its causes and without the request (whose headers hold a signature).
pub fn explain<E, R>(error: &SdkError<E, R>) -> String
where
    E: Error + 'static,
    R: std::fmt::Debug + 'static,
{
    if let Some(lacking) = NoCredentials::from_error(error) {
        return lacking.to_string();
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
    struct Said(&'static str);

    #[test]
    fn only_what_somebody_has_to_mend_is_a_refusal() {
        let not_now = NoCredentials::NotNow("AWS has troubles of its own");
        let said = |text| NoCredentials::answered(&[&Said(text)]);
        for passing in [
            "IdpCommunicationErrorException [IDPCommunicationErrorException]: the provider does not answer",
            "Non-success status from HTTP credential provider: StatusCode(503)",
            "Non-success status from HTTP credential provider: StatusCode(429)",
            "expected value at line 1",
        ] {
            assert_eq!(said(passing), not_now, "{passing}");
        }
        let expired = "ExpiredTokenException: Token expired: current date/time 1639523040 must be before 1639523000";
        assert_eq!(said(expired), NoCredentials::Refused("ExpiredToken: the token has expired".to_owned()));
        let rejected = "IdpRejectedClaimException [IDPRejectedClaimException]: no such audience";
        assert_eq!(said(rejected), NoCredentials::Refused("IdpRejectedClaim: no such audience".to_owned()));
        let forbidden = "Non-success status from HTTP credential provider: StatusCode(403)";
        assert_eq!(said(forbidden), NoCredentials::Refused(forbidden.to_owned()));

        let answered = |code| NoCredentials::answered(&[&ErrorMetadata::builder().code(code).message("no").build()]);
        assert_eq!(answered("AccessDenied"), NoCredentials::Refused("AccessDenied: no".to_owned()));
        assert_eq!(answered("Throttling"), not_now);
    }
}
