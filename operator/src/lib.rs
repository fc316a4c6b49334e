//! The operator: makes a whole pipeline from one `OrderFlow` resource, keeps it so, and says in the resource's status what
//! is and what is not.
//!
//! [`controller`] decides when a resource is looked at, [`reconcile`] what is done then, [`build`] what its children look
//! like. [`crd`] and [`condition`] are the words in which people and the operator talk to each other.

#![forbid(unsafe_code)]

pub mod build;
pub mod check;
pub mod condition;
pub mod context;
pub mod controller;
pub mod crd;
pub mod lease;
pub mod memory;
pub mod metrics;
pub mod own_buckets;
pub mod permissions;
pub mod reconcile;
pub mod release;
pub mod run;
pub mod settings;

pub use run::run;
pub use settings::{Command, Settings};
