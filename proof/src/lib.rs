//! The proof: orders flow while everything is killed, frozen, cut off and filled up. Then a checker verifies that each
//! order that was answered 201 is everywhere, once. In the manner of Jepsen and of etcd's robustness tests.
//!
//! [`run`] is one run from its start to its verdict. `make proof` runs it. A short run is part of `make test`, beside
//! the controls: defects that the checker must notice.

pub mod checker;
pub mod client;
pub mod deployment;
pub mod explain;
pub mod fault;
pub mod history;
pub mod observation;
pub mod report;
pub mod run;
pub mod settings;
pub mod storm;
pub mod workload;

pub use run::run;
pub use settings::Settings;
