//! The ports of the pods, and their names.

/// The port of the API for clients.
pub const HTTP_PORT: u16 = 8080;
pub const HTTP: &str = "http";

/// The port of the dashboard and the whole API.
pub const INTERNAL_PORT: u16 = 8081;
pub const INTERNAL: &str = "internal";

/// The port of `/livez`, `/readyz` and `/metrics`.
pub const METRICS_PORT: u16 = 9464;
pub const METRICS: &str = "metrics";
