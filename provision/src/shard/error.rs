//! Errors of a shard's database. No message contains a DSN.

use std::time::Duration;

use orderflow_service::postgres::{ConnectError, explain};
use sqlx::{migrate::MigrateError, postgres::PgDatabaseError};

use super::Identity;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connect(ConnectError),
    #[error("Postgres answered: {}", explain(.0))]
    Database(#[from] sqlx::Error),
    #[error("the server cannot hold a shard: {0}")]
    UnsuitableServer(String),
    #[error("the database belongs to {owner}; nothing was written")]
    OwnedByAnother { owner: String },
    #[error(
        "the database belongs to another shard ({found}), not to this one ({expected}); nothing was written: is the DSN right?"
    )]
    ShardMismatch { found: Identity, expected: Identity },
    /// The database was set up for another topic or bucket. `what` is `topic` or `bucket`.
    #[error("the database was set up for {what} {found:?}, not {expected:?}; nothing was written")]
    MadeForAnother { what: &'static str, found: String, expected: String },
    #[error(
        "the database has a table {table} without an owner; nothing was written: a shard needs a database of its own"
    )]
    NotEmpty { table: String },
    #[error("the database is not set up")]
    Missing,
    #[error("the schema is version {found}, expected {expected} or newer")]
    Outdated { found: i64, expected: i64 },
    #[error("the schema is version {found}, this build knows {known}; nothing was removed: use a newer build")]
    Newer { found: i64, known: i64 },
    /// Other objects depend on the tables: views, foreign keys and the like.
    #[error("drop the tables: other objects depend on them: {0}")]
    Needed(String),
    #[error("migration {0} was changed after it was applied")]
    EditedMigration(i64),
    #[error("migration {version}: {}", explain(.source))]
    Migration { version: i64, source: sqlx::Error },
    #[error("another run has been busy with the database for {} s", .0.as_secs())]
    Busy(Duration),
    #[error("not finished within {} s", .0.as_secs())]
    Deadline(Duration),
}

impl Error {
    /// Returns true if the error may resolve itself, so that a retry makes sense.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(ConnectError::Other(error))
            | Self::Database(error)
            | Self::Migration { source: error, .. } => is_transient(error),
            Self::Connect(ConnectError::NoAnswer) | Self::Busy(_) | Self::Deadline(_) => true,
            _ => false,
        }
    }
}

impl Error {
    /// Converts an error of the statement that drops the tables.
    pub(super) fn from_drop(error: sqlx::Error) -> Self {
        const DEPENDENT_OBJECTS_STILL_EXIST: &str = "2BP01";
        match error.as_database_error().map(|error| (error.code(), error.try_downcast_ref::<PgDatabaseError>())) {
            Some((Some(code), Some(postgres))) if code == DEPENDENT_OBJECTS_STILL_EXIST => {
                // One line for each object: "view report depends on table orders".
                let detail = postgres.detail().unwrap_or_else(|| postgres.message());
                Self::Needed(detail.lines().collect::<Vec<_>>().join(", "))
            }
            _ => Self::Database(error),
        }
    }
}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) => Self::Database(error),
            MigrateError::ExecuteMigration(source, version) => Self::Migration { version, source },
            MigrateError::VersionMismatch(version) => Self::EditedMigration(version),
            other => Self::Database(sqlx::Error::Migrate(Box::new(other))),
        }
    }
}

fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Connection, rollback, resources, lock timeout, shutdown or startup, disk.
            ["08", "40", "53", "55P03", "57", "58"].iter().any(|class| code.starts_with(class))
        }),
        _ => false,
    }
}
