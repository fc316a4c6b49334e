//! The real services that OrderFlow runs on, started on loopback: Postgres, Kafka, LocalStack, versitygw, an
//! OpenTelemetry Collector, Prometheus and the product's own processes.
//!
//! Every integration test starts from a [`Stack`]. `orderflow-dev` uses the services alone, without the features
//! `stack` and `kubernetes`. Nothing here is imitated: a test that kills Kafka kills a Kafka. The testbed observes the
//! product from outside, with clients of its own, and imports no product crate, so that a wrong client setting in the
//! product cannot hide itself from a test.
//!
//! The integration tests of all crates are in `testbed/tests`:
//!
//! | code | tests |
//! |---|---|
//! | `producer/src/http` | `pipeline/api`, `pipeline/bad_input.rs`, `pipeline/contract.rs` |
//! | `producer/src/shard` | `pipeline/api/{databases,idempotency,refusals}.rs`, `pipeline/{durability,plans}.rs` |
//! | `producer/src/relay` | `pipeline/relay.rs`, `pipeline/crashes.rs` |
//! | `producer/src/receipts.rs` | `pipeline/api/receipts.rs`, `pipeline/outages.rs`, `pipeline/aws.rs` |
//! | `producer/src/{feed,stats,verify}` | `pipeline/feed.rs`, `pipeline/stats.rs`, `pipeline/verify.rs` |
//! | `producer/src/trail.rs` | `pipeline/trail.rs`, `pipeline/progress.rs` |
//! | `producer/src/quota.rs` | `pipeline/hostile.rs` |
//! | `producer/dashboard` | `browser` |
//! | `consumer` | `pipeline/consumer_faults.rs`, `pipeline/crashes.rs`, `pipeline/dead_letters.rs` |
//! | `dead-letters` | `pipeline/dead_letters.rs`, `pipeline/dead_letters_api.rs` |
//! | `provision` | `pipeline/provisioning.rs` |
//! | `service` | `pool.rs`, `pipeline/{secured,supervision,values}.rs` |
//! | `operator` | `operator` |
//! | `charts`, `examples` | `charts`, `e2e` |
//! | `dev` | `controls.rs`, `browser/controls.rs` |
//! | `Tiltfile` | `tilt.rs` |
//! | `testbed` | `services.rs`, `stack.rs`, `kubernetes.rs` |

pub mod api;
pub mod browser;
pub mod certificates;
pub mod collector;
pub mod command;
pub mod dashboards;
pub mod disk;
pub mod folder;
#[cfg(feature = "kubernetes")]
pub mod helm;
pub mod http;
pub mod kafka;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod load;
pub mod localstack;
pub mod object_store;
#[cfg(feature = "kubernetes")]
pub mod operator;
pub mod port;
pub mod postgres;
pub mod process;
pub mod product;
pub mod prometheus;
pub mod proxy;
pub mod s3;
pub mod service;
#[cfg(feature = "stack")]
pub mod stack;
pub mod tools;
pub mod topic;
pub mod versitygw;
pub mod wait;

mod process_tree;

pub use browser::Browser;
#[cfg(feature = "stack")]
pub use certificates::Authority;
pub use collector::{Collector, Span};
pub use disk::SmallDisk;
#[cfg(feature = "kubernetes")]
pub use helm::Helm;
pub use kafka::Kafka;
#[cfg(feature = "kubernetes")]
pub use kubernetes::Kubernetes;
pub use localstack::LocalStack;
pub use object_store::{ObjectStore, Store};
#[cfg(feature = "kubernetes")]
pub use operator::Operator;
pub use postgres::Postgres;
pub use process::{Launch, Process};
pub use product::{Consumer, Producer, provision};
pub use prometheus::Prometheus;
pub use proxy::{Link, Proxy};
pub use service::Service;
#[cfg(feature = "stack")]
pub use stack::Stack;
pub use topic::{Isolation, Record, read_topic};
pub use versitygw::Versitygw;
pub use wait::eventually;
