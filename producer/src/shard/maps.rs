//! The shard maps of all epochs, as the databases have them. An order's receipt and event name its shard in the map
//! under which it was placed.

use std::sync::{Arc, PoisonError, RwLock};

use orderflow_core::{MapEpoch, ShardMaps};
use sqlx::PgConnection;

/// The maps that this process knows; clones share them.
#[derive(Clone, Default)]
pub struct Maps {
    known: Arc<RwLock<ShardMaps>>,
}

impl Maps {
    /// Reads the maps from this database if one of these epochs is not known yet.
    pub async fn know(
        &self,
        connection: &mut PgConnection,
        epochs: impl IntoIterator<Item = MapEpoch>,
    ) -> Result<(), sqlx::Error> {
        let is_known = {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            epochs.into_iter().all(|epoch| known.of(epoch).is_some())
        };
        if !is_known {
            let read = read(connection).await?;
            *self.known.write().unwrap_or_else(PoisonError::into_inner) = read;
        }
        Ok(())
    }

    /// Returns what `describe` makes of the map, or `None` if the epoch is not known.
    pub fn of<T>(&self, epoch: MapEpoch, describe: impl FnOnce(&orderflow_core::ShardMap) -> T) -> Option<T> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).of(epoch).map(describe)
    }
}

/// Reads all maps of a database.
pub async fn read(connection: &mut PgConnection) -> Result<ShardMaps, sqlx::Error> {
    const SELECT: &str = "SELECT epoch, shards FROM orderflow_map";
    let rows: Vec<(MapEpoch, String)> = sqlx::query_as(SELECT).fetch_all(connection).await?;
    let parsed = rows.into_iter().map(|(epoch, text)| match text.parse() {
        Ok(map) => Ok((epoch, map)),
        Err(error) => Err(sqlx::Error::Decode(format!("orderflow_map, epoch {epoch}: {error}").into())),
    });
    parsed.collect()
}
