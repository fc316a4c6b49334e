//! The operator: creates and maintains a whole pipeline from one `OrderFlow` resource, and reports its state in the
//! resource's status.
//!
//! [`controller`] decides when a resource is reconciled, [`reconcile`] does it, [`build`] makes the children. [`crd`]
//! and [`condition`] define what people write and what the operator reports.

#![forbid(unsafe_code)]

pub mod api_requests;
pub mod build;
pub mod cache;
pub mod check;
pub mod condition;
pub mod controller;
pub mod crd;
pub mod kubernetes;
pub mod lease;
pub mod metrics;
pub mod own_buckets;
pub mod permissions;
pub mod pipeline;
pub mod reconcile;
pub mod release;
pub mod run;
pub mod settings;

pub use run::run;
pub use settings::{Command, Settings};
