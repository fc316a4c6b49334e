//! Checks that a database is the expected shard, in a schema that this build can use. The check runs at each connect
//! and while a connection is idle, so that a swapped DSN or an old schema is noticed before it harms an order.

use orderflow_core::{ShardMap, schema};
use sqlx::PgConnection;

/// The values that `orderflow_meta` must have.
#[derive(Clone, Debug)]
pub struct Expected {
    shard_name: String,
    shard_index: i32,
    shard_map: String,
}

#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// An operator has to fix it.
    #[error("{0}")]
    Unusable(String),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl MetaError {
    /// Converts the error into the kind that a pool expects.
    pub fn into_sqlx(self) -> sqlx::Error {
        match self {
            Self::Unusable(reason) => sqlx::Error::Configuration(reason.into()),
            Self::Database(error) => error,
        }
    }
}

impl Expected {
    pub fn new(shard: &orderflow_core::Shard, map: &ShardMap) -> Self {
        Self { shard_name: shard.name.clone(), shard_index: shard.number.get() as i32 - 1, shard_map: map.to_string() }
    }

    pub fn shard_name(&self) -> &str {
        &self.shard_name
    }

    pub async fn check(&self, connection: &mut PgConnection) -> Result<(), MetaError> {
        const SELECT: &str = "SELECT shard_name, shard_index, shard_map, schema_version FROM orderflow_meta";
        let needed = schema::VERSION;
        let unprovisioned =
            || MetaError::Unusable(format!("has no schema, needs version {needed}: run orderflow-provision"));
        let row: Option<(String, i32, String, i64)> = match sqlx::query_as(SELECT).fetch_optional(connection).await {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => {
                return Err(unprovisioned());
            }
            other => other?,
        };
        let (name, index, map, version) = row.ok_or_else(unprovisioned)?;
        if (&name, index, &map) != (&self.shard_name, self.shard_index, &self.shard_map) {
            return Err(MetaError::Unusable(format!(
                "this database is {name} (number {}) of {map}, not {} (number {}) of {}: is the DSN of another shard given?",
                index + 1,
                self.shard_name,
                self.shard_index + 1,
                self.shard_map,
            )));
        }
        if version < needed {
            return Err(MetaError::Unusable(format!(
                "its schema has version {version}, this build needs {needed}: run orderflow-provision"
            )));
        }
        Ok(())
    }
}
