//! The S3 client of tests. It has settings of its own, because the product's settings are under test.

use aws_sdk_s3::config::{BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation::WhenRequired};

/// The region of the testbed's servers.
pub const REGION: &str = "us-east-1";

/// Returns a client for the S3 at `endpoint`, which has no path. Buckets are addressed by path, not by host.
pub fn client(endpoint: &str, access_key_id: &str, secret_access_key: &str) -> aws_sdk_s3::Client {
    let settings = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .credentials_provider(Credentials::new(access_key_id, secret_access_key, None, None, "testbed"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .request_checksum_calculation(WhenRequired)
        .build();
    aws_sdk_s3::Client::from_conf(settings)
}
