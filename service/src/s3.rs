//! The one place where an S3 client is built.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_s3::{
    Client,
    config::{Credentials, RequestChecksumCalculation, ResponseChecksumValidation},
    error::{DisplayErrorContext, SdkError},
};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};

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

    /// Region of the bucket
    #[arg(long, env = "AWS_REGION", default_value = "us-east-1")]
    pub aws_region: String,

    /// Access key; absent: the default AWS chain (web identity, instance role, …)
    #[arg(long, env = "AWS_ACCESS_KEY_ID", hide_env_values = true, requires = "aws_secret_access_key")]
    pub aws_access_key_id: Option<String>,

    /// Secret of the access key
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub aws_secret_access_key: Option<SecretString>,

    /// Session token of temporary credentials
    #[arg(long, env = "AWS_SESSION_TOKEN", hide_env_values = true)]
    pub aws_session_token: Option<SecretString>,

    /// Longest wait for an answer of S3, in milliseconds
    #[arg(long, env = "S3_TIMEOUT_MS", default_value_t = 5000)]
    pub s3_timeout_ms: u64,
}

impl Settings {
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.s3_timeout_ms)
    }
}

/// A client that tries once and within the timeout: retrying is the caller's business, who knows what else waits.
pub async fn client(settings: &Settings) -> Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(settings.timeout().min(Duration::from_secs(2)))
        .operation_timeout(settings.timeout())
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(settings.aws_region.clone()))
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts);
    if let (Some(id), Some(secret)) = (&settings.aws_access_key_id, &settings.aws_secret_access_key) {
        let session = settings.aws_session_token.as_ref().map(|token| token.expose_secret().to_owned());
        loader = loader.credentials_provider(Credentials::new(id, secret.expose_secret(), session, None, "settings"));
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

/// What went wrong, with its causes and without the request (whose headers hold a signature).
pub fn explain<E, R>(error: &SdkError<E, R>) -> String
where
    E: std::error::Error + 'static,
    R: std::fmt::Debug,
{
    match error {
        SdkError::TimeoutError(_) => "no answer in time".to_owned(),
        SdkError::ServiceError(context) => format!("{}", DisplayErrorContext(context.err())),
        SdkError::DispatchFailure(failure) if failure.is_io() => "cannot connect".to_owned(),
        other => format!("{other}"),
    }
}
