//! "Make it so" and "is it so" for everything that an OrderFlow stands on: the schema of each shard, the bucket of the
//! receipts, the four topics, and whose they are. Each target is a module of its own, and each call is idempotent, safe when
//! several run at once, bounded by a deadline, and answers with what it found and did.
//!
//! Used by the binary of this crate and by whoever keeps an OrderFlow in shape; never by the producer or the consumer.

#![forbid(unsafe_code)]

pub mod bucket;
pub mod run;
pub mod settings;
pub mod shard;
pub mod topics;

pub use run::{Line, run};
pub use settings::Settings;
