//! The SQL that a shard's database gets from this crate.

use std::time::Duration;

use orderflow_core::{FIRST_EPOCH, RangeId};
use orderflow_service::postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::Instant;

use super::{Error, Identity, durability::Durability, migrations};

/// The longest wait for other runs on the same database.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// The advisory lock that a run holds from its first read to its last write: "orderpro" as a number.
const LOCK_KEY: i64 = 0x6f72_6465_7270_726f;

/// Oldest major version of Postgres.
const OLDEST_SERVER: i32 = 14;

/// The tables that the migrations create. Their indexes and sequences belong to them.
const TABLES: [&str; 8] = [
    "orders",
    "idempotency_keys",
    "outbox",
    "outbox_dead",
    "receipt_jobs",
    "orderflow_meta",
    "orderflow_map",
    "orderflow_gate",
];

/// A connection that one run uses.
pub(super) struct Database {
    connection: PgConnection,
}

/// The content of `orderflow_meta`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marking {
    pub owner: String,
    pub identity: Identity,
    pub topic: Option<String>,
    pub bucket: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No tables of our names.
    Empty,
    /// A table of one of our names, but no `orderflow_meta` to name the owner.
    Foreign {
        table: String,
    },
    /// Our tables without an owner: the setup was interrupted, or the marking was deleted.
    Unmarked {
        orders: bool,
    },
    Marked {
        marking: Marking,
        version: i64,
    },
}

impl Database {
    pub(super) async fn open_to_write(options: &PgConnectOptions) -> Result<Self, Error> {
        Self::open(options, "off").await
    }

    pub(super) async fn open_to_read(options: &PgConnectOptions) -> Result<Self, Error> {
        Self::open(options, "on").await
    }

    async fn open(options: &PgConnectOptions, read_only: &str) -> Result<Self, Error> {
        let options = options.clone().options([
            // A migration that waits for a lock makes every order behind it wait too: give up before the writer's 2 s,
            // but after the 1 s that an autovacuum takes to step aside.
            ("lock_timeout", "1500"),
            ("statement_timeout", "60000"),
            ("idle_in_transaction_session_timeout", "60000"),
            ("default_transaction_read_only", read_only),
            // `CREATE TABLE IF NOT EXISTS` would send each run a notice that the table exists.
            ("client_min_messages", "warning"),
        ]);
        let connection = postgres::connect(&options).await.map_err(Error::Connect)?;
        Ok(Self { connection })
    }

    pub(super) async fn require_suitable_server(&mut self) -> Result<(), Error> {
        const QUERY: &str = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
             current_setting('server_encoding'), pg_is_in_recovery()";
        let (number, version, encoding, standby): (i32, String, String, bool) =
            sqlx::query_as(QUERY).fetch_one(&mut self.connection).await?;
        if number < OLDEST_SERVER * 10_000 {
            let reason = format!("it is Postgres {version}, at least {OLDEST_SERVER} is needed");
            return Err(Error::UnsuitableServer(reason));
        }
        if encoding != "UTF8" {
            let reason = format!("the database's encoding is {encoding}, UTF8 is needed");
            return Err(Error::UnsuitableServer(reason));
        }
        if standby {
            return Err(Error::UnsuitableServer("it is a standby, which takes no writes".to_owned()));
        }
        Ok(())
    }

    pub(super) async fn durability(&mut self) -> Result<Durability, Error> {
        // Logical subscriptions appear here as well, and are no standbys.
        const QUERY: &str = "
            SELECT current_setting('fsync'), current_setting('full_page_writes'),
                current_setting('synchronous_commit'), current_setting('synchronous_standby_names'),
                (SELECT count(*) FROM pg_stat_replication
                 WHERE sync_state = 'async' AND pid NOT IN
                    (SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL))";
        let (fsync, full_page_writes, synchronous_commit, synchronous_standby_names, asynchronous_standbys) =
            sqlx::query_as(QUERY).fetch_one(&mut self.connection).await?;
        Ok(Durability { fsync, full_page_writes, synchronous_commit, synchronous_standby_names, asynchronous_standbys })
    }

    /// Takes the lock that only one run at a time holds; the end of the session releases it. Polling instead of waiting
    /// in the server keeps no snapshot open, for which `CREATE INDEX CONCURRENTLY` of the run before would wait
    /// forever.
    pub(super) async fn lock(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
                .bind(LOCK_KEY)
                .fetch_one(&mut self.connection)
                .await?;
            if taken {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy(LOCK_TIMEOUT));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(super) async fn state(&mut self) -> Result<State, Error> {
        if !self.has_table("orderflow_meta").await? {
            for table in TABLES {
                if self.has_table(table).await? {
                    return Ok(State::Foreign { table: table.to_owned() });
                }
            }
            return Ok(State::Empty);
        }
        const QUERY: &str =
            "SELECT owner, shard_name, shard_index, shard_map, topic, bucket, schema_version FROM orderflow_meta";
        type Row = (String, String, i32, String, Option<String>, Option<String>, i64);
        let row: Option<Row> = sqlx::query_as(QUERY).fetch_optional(&mut self.connection).await?;
        let Some((owner, name, index, map, topic, bucket, version)) = row else {
            let orders: bool =
                sqlx::query_scalar("SELECT EXISTS (SELECT FROM orders)").fetch_one(&mut self.connection).await?;
            return Ok(State::Unmarked { orders });
        };
        let marking = Marking { owner, identity: Identity { name, index, map }, topic, bucket };
        Ok(State::Marked { marking, version })
    }

    async fn has_table(&mut self, name: &str) -> Result<bool, Error> {
        // Searched as in later statements, along the search path.
        Ok(sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(name).fetch_one(&mut self.connection).await?)
    }

    /// Applies the missing migrations and returns the newest version in the database, which may be newer than ours.
    pub(super) async fn migrate(&mut self) -> Result<i64, Error> {
        // Like `run`, but its future is `Send`, which the generic one is not.
        migrations::all().run_direct(None, &mut self.connection, false).await?;
        Ok(sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut self.connection).await?)
    }

    /// Writes the marking, unless it is there already. An older build never lowers the version. `ranges` are those of the
    /// shard in the first epoch; they are written only once, because moves change them.
    pub(super) async fn mark(&mut self, marking: &Marking, ranges: &[RangeId], version: i64) -> Result<(), Error> {
        const STATEMENT: &str = "
            WITH first AS (
                INSERT INTO orderflow_map (epoch, shards) VALUES ($8, $4) ON CONFLICT DO NOTHING
            ), gate AS (
                INSERT INTO orderflow_gate (slot, owned) SELECT slot, $9 FROM generate_series(0, 63) AS slot
                ON CONFLICT DO NOTHING
            )
            INSERT INTO orderflow_meta AS meta
                (owner, shard_name, shard_index, shard_map, topic, bucket, schema_version)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            ON CONFLICT (singleton) DO UPDATE SET
                owner = excluded.owner, topic = excluded.topic, bucket = excluded.bucket,
                schema_version = greatest(meta.schema_version, excluded.schema_version), updated_at = now()
            WHERE (meta.owner, meta.topic, meta.bucket) IS DISTINCT FROM (excluded.owner, excluded.topic, excluded.bucket)
                OR meta.schema_version < excluded.schema_version";
        sqlx::query(STATEMENT)
            .bind(&marking.owner)
            .bind(&marking.identity.name)
            .bind(marking.identity.index)
            .bind(&marking.identity.map)
            .bind(&marking.topic)
            .bind(&marking.bucket)
            .bind(version)
            .bind(FIRST_EPOCH)
            .bind(ranges)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Drops our tables and the records of their migrations, all or nothing.
    pub(super) async fn drop_tables(&mut self) -> Result<(), Error> {
        // Only the schema of the marking: along a longer search path others may have tables of the same names.
        const SEARCH_THERE: &str = "
            SELECT set_config('search_path', format('%I', nspname), true)
            FROM pg_namespace JOIN pg_class ON pg_class.relnamespace = pg_namespace.oid
            WHERE pg_class.oid = to_regclass('orderflow_meta')";
        // The table may record foreign migrations as well.
        const FORGET: &str = "DELETE FROM _sqlx_migrations WHERE version = ANY($1)";
        const OTHERS: &str = "SELECT EXISTS (SELECT FROM _sqlx_migrations)";

        let mut transaction = self.connection.begin().await?;
        sqlx::query(SEARCH_THERE).execute(&mut *transaction).await?;
        // Without CASCADE, because dependent objects are not ours.
        let drop_tables = format!("DROP TABLE IF EXISTS {}", TABLES.join(", "));
        sqlx::query(AssertSqlSafe(drop_tables)).execute(&mut *transaction).await.map_err(Error::from_drop)?;
        let noted: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(&mut *transaction)
            .await?;
        if noted {
            let ours: Vec<i64> = migrations::all().iter().map(|migration| migration.version).collect();
            sqlx::query(FORGET).bind(ours).execute(&mut *transaction).await?;
            let others: bool = sqlx::query_scalar(OTHERS).fetch_one(&mut *transaction).await?;
            if !others {
                sqlx::query("DROP TABLE _sqlx_migrations").execute(&mut *transaction).await?;
            }
        }
        Ok(transaction.commit().await?)
    }

    pub(super) async fn close(self) {
        // The work is committed, so an error of the close does not matter.
        let _ = self.connection.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ensures that a removal leaves no table behind.
    #[test]
    fn the_list_of_tables_matches_the_migrations() {
        let migrations = migrations::all();
        let lines = migrations.iter().flat_map(|migration| migration.sql.as_str().lines());
        let code: Vec<&str> = lines.filter(|line| !line.trim_start().starts_with("--")).collect();
        let code = code.join("\n");
        let mut made = Vec::new();
        for statement in code.split(';') {
            match statement.split_whitespace().collect::<Vec<_>>()[..] {
                ["CREATE", "TABLE", name, ..] => made.push(name),
                []
                | ["INSERT", "INTO", ..]
                | ["CREATE", "INDEX", ..]
                | ["CREATE", "UNIQUE", "INDEX", ..]
                | ["ALTER", "TABLE", ..] => {}
                _ => panic!("a removal may not cover this statement: {statement}"),
            }
        }
        let mut known = TABLES.to_vec();
        made.sort_unstable();
        known.sort_unstable();
        assert_eq!(made, known);
    }
}
