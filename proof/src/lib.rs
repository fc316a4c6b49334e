//! The proof: orders flow while everything is killed, frozen, cut off and filled up, and a checker then looks whether each
//! order that was answered 201 is everywhere, once. In the manner of Jepsen and of etcd's robustness tests.
//!
//! [`run`] is the table of contents of a run. `make proof` runs it, and a short one is part of `make test`, beside the
//! controls: defects that the checker must notice.

pub mod checker;
pub mod client;
pub mod history;
pub mod observation;
pub mod workload;
