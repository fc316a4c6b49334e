//! Checks that a database is the expected shard, in a schema that this build can use. The check runs at each connect
//! and while a connection is idle, so that a swapped DSN or an old schema is noticed before it harms an order.

use orderflow_core::{FIRST_EPOCH, MapEpoch, ShardMap, ShardNumber, schema};
use sqlx::PgConnection;

/// The values that `orderflow_meta` must have.
#[derive(Clone, Debug)]
pub struct Expected {
    shard_name: String,
    shard_number: ShardNumber,
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
        Self { shard_name: shard.name.clone(), shard_number: shard.number, shard_map: map.to_string() }
    }

    pub fn shard_name(&self) -> &str {
        &self.shard_name
    }

    pub fn shard_number(&self) -> ShardNumber {
        self.shard_number
    }

    /// Checks the database, and returns the epoch of its newest shard map. The map of the settings must equal its first
    /// one; later ones are the result of moves.
    pub async fn check(&self, connection: &mut PgConnection) -> Result<MapEpoch, MetaError> {
        const VERSION: &str = "SELECT schema_version FROM orderflow_meta";
        const SELECT: &str = "SELECT shard_name, shard_index + 1, shard_map, \
                              (SELECT coalesce(max(epoch), 1) FROM orderflow_map), \
                              (SELECT shards FROM orderflow_map WHERE epoch = 1) FROM orderflow_meta";
        let needed = schema::VERSION;
        let unprovisioned =
            || MetaError::Unusable(format!("has no schema, needs version {needed}: run orderflow-provision"));
        let version: Option<i64> = match sqlx::query_scalar(VERSION).fetch_optional(&mut *connection).await {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => {
                return Err(unprovisioned());
            }
            other => other?,
        };
        let version = version.ok_or_else(unprovisioned)?;
        if version < needed {
            return Err(MetaError::Unusable(format!(
                "its schema has version {version}, this build needs {needed}: run orderflow-provision"
            )));
        }
        let row: Option<(String, i32, String, MapEpoch, Option<String>)> =
            sqlx::query_as(SELECT).fetch_optional(connection).await?;
        let (name, number, map, epoch, first) = row.ok_or_else(unprovisioned)?;
        let own = i64::from(self.shard_number.get());
        let is_own_map = first.as_ref() == Some(&self.shard_map) && (epoch > FIRST_EPOCH || map == self.shard_map);
        if (&name, i64::from(number)) != (&self.shard_name, own) || !is_own_map {
            return Err(MetaError::Unusable(format!(
                "this database is {name} (number {number}) of {map}, not {} (number {own}) of {}: is the DSN of another \
                 shard given?",
                self.shard_name, self.shard_map,
            )));
        }
        Ok(epoch)
    }
}
