//! Which database schema the code in this build was written for.

/// The newest migration of `provision/migrations`. Migrations only expand, so a producer works with this version or any
/// newer one, and is unready with an older one.
pub const VERSION: i64 = if cfg!(feature = "next-schema") { 2 } else { 1 };
