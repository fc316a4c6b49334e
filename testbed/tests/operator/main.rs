//! The operator on a real API server with real controllers, and with real Postgres, Kafka and S3. No node runs: where
//! pods must run, a test plays the kubelet, and its comment says so.

mod backends;
mod command;
mod deletion;
mod drift;
mod lifecycle;
mod measurements;
mod monitoring;
mod outages;
mod ownership;
mod pausing;
mod pods;
mod release;
mod robustness;
mod rules;
mod scaling;
mod secrets;
mod secured;
mod support;
