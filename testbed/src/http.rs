//! The HTTP client of tests: plain `reqwest` that waits for nothing forever and goes through no proxy.

use std::time::Duration;

/// Longer than any deadline the product promises, so that a test sees the product's answer and not its own timeout.
pub const TIMEOUT: Duration = Duration::from_secs(15);

/// A client of its own per call: it belongs to the runtime of the test that asked for it.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .timeout(TIMEOUT)
        .connect_timeout(Duration::from_secs(2))
        .no_proxy()
        .build()
        .expect("plain options make a client")
}
