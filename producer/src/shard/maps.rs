//! The shard maps of all epochs, as the databases have them. The newest routes new orders; an order's receipt and event
//! name its shard in the map under which it was placed.

use std::sync::{Arc, PoisonError, RwLock};

use orderflow_core::{FIRST_EPOCH, MapEpoch, Routes, ShardMap, ShardMaps};
use sqlx::PgConnection;

/// The maps that this process knows; clones share them.
#[derive(Clone)]
pub struct Maps {
    known: Arc<RwLock<Known>>,
}

struct Known {
    maps: ShardMaps,
    newest: Arc<Routes>,
}

impl Maps {
    /// Starts with the map of the settings. A database that knows another one refuses this process, or has a newer epoch.
    pub fn new(first: ShardMap) -> Self {
        let maps = ShardMaps::from_iter([(FIRST_EPOCH, first.clone())]);
        Self { known: Arc::new(RwLock::new(Known { maps, newest: Arc::new(Routes::first(first)) })) }
    }

    /// Returns the routes of new orders. A database that does not store a range any more refuses its orders.
    pub fn routes(&self) -> Arc<Routes> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).newest.clone()
    }

    /// Returns what `describe` makes of the map of an epoch, or `None` if the epoch is not known.
    pub fn of<T>(&self, epoch: MapEpoch, describe: impl FnOnce(&ShardMap) -> T) -> Option<T> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).maps.of(epoch).map(describe)
    }

    /// Reads the maps from this database if one of these epochs is not known yet.
    pub async fn know(
        &self,
        connection: &mut PgConnection,
        epochs: impl IntoIterator<Item = MapEpoch>,
    ) -> Result<(), sqlx::Error> {
        let is_known = epochs.into_iter().all(|epoch| self.of(epoch, |_| ()).is_some());
        if is_known { Ok(()) } else { self.read_from(connection).await }
    }

    /// Reads the maps from this database, and takes over the newest if it is newer than the known one.
    pub async fn read_from(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        const NEWEST: &str = "SELECT epoch, shards, ranges::text FROM orderflow_map ORDER BY epoch DESC LIMIT 1";
        let read = read(connection).await?;
        let newest: Option<(MapEpoch, String, Option<String>)> =
            sqlx::query_as(NEWEST).fetch_optional(connection).await?;
        let newest = match newest {
            Some((epoch, shards, Some(ranges))) => {
                let map = parse(epoch, &shards)?;
                let routes = Routes::from_json(epoch, map, &ranges).map_err(|error| unusable(epoch, &error))?;
                Some(Arc::new(routes))
            }
            _ => None,
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (epoch, map) in read {
            known.maps.insert(epoch, map);
        }
        if let Some(newest) = newest.filter(|newest| newest.epoch > known.newest.epoch) {
            tracing::info!(epoch = newest.epoch, map = %newest.map, "a newer shard map");
            known.newest = newest;
        }
        Ok(())
    }
}

/// Reads all maps of a database.
pub async fn read(connection: &mut PgConnection) -> Result<ShardMaps, sqlx::Error> {
    const SELECT: &str = "SELECT epoch, shards FROM orderflow_map";
    let rows: Vec<(MapEpoch, String)> = sqlx::query_as(SELECT).fetch_all(connection).await?;
    rows.into_iter().map(|(epoch, text)| Ok((epoch, parse(epoch, &text)?))).collect()
}

fn parse(epoch: MapEpoch, shards: &str) -> Result<ShardMap, sqlx::Error> {
    shards.parse().map_err(|error| unusable(epoch, &error))
}

fn unusable(epoch: MapEpoch, error: &dyn std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(format!("orderflow_map, epoch {epoch}: {error}").into())
}
