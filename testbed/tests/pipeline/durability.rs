//! Settings of Postgres that could lose an acknowledged order: raised where a session can, reported where it cannot.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Service, Stack, api::order_of, eventually, http, wait::PATIENCE};

use crate::support::serving;

/// Records the setting under which the writer's insert and the relay's delete commit.
const RECORD_SETTING: &str = "
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database());
    END $$;
    CREATE TABLE committed_with (who text, setting text);
    CREATE FUNCTION record_setting() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO committed_with VALUES (tg_argv[0], current_setting('synchronous_commit'));
        RETURN NULL;
    END $$;
    CREATE TRIGGER record_writer AFTER INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION record_setting('writer');
    CREATE TRIGGER record_relay AFTER DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION record_setting('relay')";

#[tokio::test(flavor = "multi_thread")]
async fn writer_and_relay_commit_synchronously_whatever_the_database_default() -> Result<()> {
    let stack = Stack::shared().await?;
    let mut shard = stack.shard(1).await?;
    sqlx::raw_sql(RECORD_SETTING).execute(&mut shard).await?;
    let (_producer, api) = serving(&stack).await?;
    api.post(order_of("alice"), None).await?.acked(0)?;
    eventually("both have committed", PATIENCE, async || {
        const SEEN: &str = "SELECT DISTINCT who, setting FROM committed_with ORDER BY who";
        let seen: Vec<(String, String)> = sqlx::query_as(SEEN).fetch_all(&mut stack.shard(1).await?).await?;
        let seen: Vec<_> = seen.iter().map(|(who, setting)| (who.as_str(), setting.as_str())).collect();
        ensure!(seen == [("relay", "on"), ("writer", "on")], "{seen:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_setting_of_a_server_is_a_metric_and_a_warning() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let mut shard = stack.shard(1).await?;
    sqlx::raw_sql("ALTER SYSTEM SET fsync = off").execute(&mut shard).await?;
    sqlx::raw_sql("SELECT pg_reload_conf()").execute(&mut shard).await?;
    eventually("the setting is in force", PATIENCE, async || {
        let fsync: String =
            sqlx::query_scalar("SELECT current_setting('fsync')").fetch_one(&mut stack.shard(1).await?).await?;
        ensure!(fsync == "off", "fsync is {fsync}");
        Ok(())
    })
    .await?;

    let (producer, _api) = serving(&stack).await?;
    let metrics = http::client().get(format!("{}/metrics", producer.admin_url()?)).send().await?.text().await?;
    for (shard, setting, value) in [
        ("shard1", "fsync", 1),
        ("shard1", "full_page_writes", 0),
        ("shard1", "synchronous_standby_names", 0),
        ("shard2", "fsync", 0),
    ] {
        let line = format!("orderflow_unsafe_setting{{shard=\"{shard}\",setting=\"{setting}\"}} {value}\n");
        ensure!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
    let log = producer.process().log_since_start();
    let line =
        log.lines().find(|line| line.contains("a setting of Postgres is unsafe")).context("nothing is logged")?;
    ensure!(line.contains("fsync") && line.contains("shard1"), "{line}");
    Ok(())
}
