//! The database schema that this build needs.

/// The newest migration of `provision/migrations`. Migrations only add to the schema, so a producer works with this
/// version or any newer one, and is unready with an older one.
pub const VERSION: i64 = if cfg!(feature = "next-schema") { 5 } else { 4 };
