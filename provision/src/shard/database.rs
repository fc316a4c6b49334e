//! The questions and orders that a shard's database gets from here, each of them SQL.

use std::time::Duration;

use orderflow_service::postgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection, migrate::Migrator, postgres::PgConnectOptions};
use tokio::time::Instant;

use super::{Error, Identity, durability::Durability};

/// Longest wait for other runs on the same database.
pub(super) const TURN: Duration = Duration::from_secs(30);

/// The advisory lock that a run holds from its first look to its last write: "orderpro" as a number.
const TURN_KEY: i64 = 0x6f72_6465_7270_726f;

/// Oldest major version of Postgres.
const OLDEST_SERVER: i32 = 14;

/// Everything that the migrations make; their indexes and sequences belong to them.
const TABLES: [&str; 6] = ["orders", "idempotency_keys", "outbox", "outbox_dead", "receipt_jobs", "orderflow_meta"];

/// One connection, used by one run.
pub(super) struct Database {
    connection: PgConnection,
}

/// What `orderflow_meta` says about a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marking {
    pub owner: String,
    pub identity: Identity,
    pub topic: Option<String>,
    pub bucket: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// None of our tables, and none of the same name.
    Empty,
    /// A table of a name that we need, but not the one that would say whose it is.
    Foreign {
        table: String,
    },
    /// Our tables, and nobody's name on them: a creation was interrupted, or somebody removed it.
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
            // `CREATE TABLE IF NOT EXISTS` would tell every run that the table exists.
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
        // Subscriptions are senders, too, and no standbys.
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

    /// Only one run at a time goes past this; the end of the session lets the next one in. Asking again and again instead
    /// of waiting in the server keeps no snapshot open, which `CREATE INDEX CONCURRENTLY` of the run before would
    /// wait for, forever.
    pub(super) async fn take_turn(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + TURN;
        loop {
            let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
                .bind(TURN_KEY)
                .fetch_one(&mut self.connection)
                .await?;
            if taken {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy(TURN));
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
        // As later statements will find it, along the search path.
        Ok(sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(name).fetch_one(&mut self.connection).await?)
    }

    /// Applies what is missing and answers with the newest version that the database has, which may be newer than ours.
    pub(super) async fn migrate(&mut self) -> Result<i64, Error> {
        // `run`, but as a future that may move between threads, which the generic one may not.
        migrations().run_direct(None, &mut self.connection, false).await?;
        Ok(sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut self.connection).await?)
    }

    /// Writes the marking, unless it stands there already. A version is never set back by an older build.
    pub(super) async fn mark(&mut self, marking: &Marking, version: i64) -> Result<(), Error> {
        const STATEMENT: &str = "
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
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Drops our tables, and what was noted about their migrations: all of it or nothing.
    pub(super) async fn drop_tables(&mut self) -> Result<(), Error> {
        // Only those beside the table that says whose they are: along a longer search path others may have the same names.
        const SEARCH_THERE: &str = "
            SELECT set_config('search_path', format('%I', nspname), true)
            FROM pg_namespace JOIN pg_class ON pg_class.relnamespace = pg_namespace.oid
            WHERE pg_class.oid = to_regclass('orderflow_meta')";
        // Somebody else's migrations may be noted in the same table.
        const FORGET: &str = "DELETE FROM _sqlx_migrations WHERE version = ANY($1)";
        const OTHERS: &str = "SELECT EXISTS (SELECT FROM _sqlx_migrations)";

        let mut transaction = self.connection.begin().await?;
        sqlx::query(SEARCH_THERE).execute(&mut *transaction).await?;
        // Without CASCADE: what depends on ours is not ours.
        let drop_tables = format!("DROP TABLE IF EXISTS {}", TABLES.join(", "));
        sqlx::query(AssertSqlSafe(drop_tables)).execute(&mut *transaction).await.map_err(Error::of_drop)?;
        let noted: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(&mut *transaction)
            .await?;
        if noted {
            let ours: Vec<i64> = migrations().iter().map(|migration| migration.version).collect();
            sqlx::query(FORGET).bind(ours).execute(&mut *transaction).await?;
            let others: bool = sqlx::query_scalar(OTHERS).fetch_one(&mut *transaction).await?;
            if !others {
                sqlx::query("DROP TABLE _sqlx_migrations").execute(&mut *transaction).await?;
            }
        }
        Ok(transaction.commit().await?)
    }

    pub(super) async fn close(self) {
        // The work is done; a server that is gone by now takes nothing back.
        let _ = self.connection.close().await;
    }
}

fn migrations() -> Migrator {
    #[cfg(not(feature = "next-schema"))]
    let mut migrations = sqlx::migrate!("./migrations");
    #[cfg(feature = "next-schema")]
    let mut migrations = sqlx::migrate!("./tests/next-schema");
    // A newer build was here: its migrations only expanded.
    migrations.set_ignore_missing(true);
    // The turn covers the looks before and the marking after as well, which the migrator's own lock would not.
    migrations.set_locking(false);
    migrations
}

#[cfg(test)]
mod tests {
    use orderflow_core::schema;

    use super::*;

    #[test]
    fn the_newest_migration_is_the_version_that_the_code_was_written_for() {
        assert_eq!(migrations().iter().map(|migration| migration.version).max(), Some(schema::VERSION));
    }

    #[test]
    fn migrations_are_numbered_without_gaps() {
        let versions: Vec<i64> = migrations().iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=schema::VERSION).collect::<Vec<_>>());
    }
    /// Otherwise a removal would leave something behind.
    #[test]
    fn the_tables_are_all_that_the_migrations_make() {
        let migrations = migrations();
        let lines = migrations.iter().flat_map(|migration| migration.sql.as_str().lines());
        let code: Vec<&str> = lines.filter(|line| !line.trim_start().starts_with("--")).collect();
        let code = code.join("\n");
        let mut made = Vec::new();
        for statement in code.split(';') {
            match statement.split_whitespace().collect::<Vec<_>>()[..] {
                ["CREATE", "TABLE", name, ..] => made.push(name),
                [] | ["CREATE", "INDEX", ..] | ["CREATE", "UNIQUE", "INDEX", ..] | ["ALTER", "TABLE", ..] => {}
                _ => panic!("is this removed with a table? {statement}"),
            }
        }
        let mut known = TABLES.to_vec();
        made.sort_unstable();
        known.sort_unstable();
        assert_eq!(made, known);
    }
}
