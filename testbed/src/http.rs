//! The HTTP client of tests: plain `reqwest` with a timeout for each request and without a proxy.

use std::time::Duration;

/// The timeout of a request: longer than any deadline the product promises, so that a test sees the product's response.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// Returns a new client per call, because a client belongs to the runtime of the test that created it.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .timeout(TIMEOUT)
        .connect_timeout(Duration::from_secs(2))
        .no_proxy()
        .build()
        .expect("these options are valid")
}
