//! Raises `synchronous_commit` for a session that acknowledges orders, and finds the settings of its server that can
//! lose acknowledged orders.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use crate::metrics::{UnsafeSettings, WATCHED_SETTINGS};

/// The query that raises the setting and reads the others. A stronger setting stays: `remote_apply` waits for more than
/// `on`. The standbys are only counted, because their state is hidden from a role without `pg_read_all_stats`.
const REQUIRE: &str = "SELECT \
    CASE WHEN current_setting('synchronous_commit') IN ('off', 'local', 'remote_write') \
        THEN set_config('synchronous_commit', 'on', false) END AS raised, \
    current_setting('fsync')::bool AS fsync, \
    current_setting('full_page_writes')::bool AS full_page_writes, \
    current_setting('synchronous_standby_names') <> '' OR NOT EXISTS (\
        SELECT FROM pg_stat_replication WHERE pid NOT IN (\
            SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL)) AS standbys";

struct Answer {
    raised: Option<String>,
    fsync: bool,
    full_page_writes: bool,
    standbys: bool,
}

orderflow_service::from_row!(Answer { raised, fsync, full_page_writes, standbys });

/// Makes each commit of this session wait until it survives a crash, and reports what the server's settings put at
/// risk: as a metric, and once as a warning.
pub async fn require(connection: &mut PgConnection, shard: &str, metric: &UnsafeSettings) -> Result<(), sqlx::Error> {
    let found: Answer = sqlx::query_as(REQUIRE).fetch_one(connection).await?;
    if found.raised.is_some() {
        tracing::debug!(shard, "synchronous_commit is weaker than `on` in this database: raised for this session");
    }
    let met = [found.fsync, found.full_page_writes, found.standbys];
    let weak: BTreeSet<_> =
        WATCHED_SETTINGS.into_iter().zip(met).filter(|(_, met)| !met).map(|(setting, _)| setting).collect();
    for setting in metric.replace(weak) {
        let risk = match setting {
            "synchronous_standby_names" => {
                "its standbys are asynchronous, so a failover can lose orders that were answered 201: name one that must \
                 confirm each commit"
            }
            _ => "a crash of the server can lose or corrupt orders that were answered 201: set it to on",
        };
        tracing::warn!(shard, setting, risk, "a setting of Postgres is unsafe");
    }
    Ok(())
}
