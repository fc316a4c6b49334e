//! Checks that the reference page of the tables matches a provisioned database.

use std::{env, fs, path::Path};

use anyhow::{Context, Result, ensure};
use orderflow_reference::tables::{self, Column, Relation};
use orderflow_testbed::Stack;
use sqlx::PgConnection;

const PAGE: &str = "docs/reference/topics-and-tables.md";

/// Tables in the order of their creation.
const TABLES: &str = "
    SELECT relname::text FROM pg_class
    WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> '_sqlx_migrations' ORDER BY oid";

const COLUMNS: &str = "
    SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
           CASE WHEN a.attidentity = 'a' THEN 'GENERATED ALWAYS AS IDENTITY' ELSE pg_get_expr(d.adbin, d.adrelid) END
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// Constraints other than NOT NULL, which is a constraint from Postgres 18 on and on the page a property of its column.
const CONSTRAINTS: &str = "
    SELECT pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid = $1::text::regclass AND contype <> 'n' ORDER BY contype DESC, conname";

const INDEXES: &str = "
    SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i
    WHERE i.indrelid = $1::text::regclass AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
    ORDER BY i.indexrelid";

const PARAMETERS: &str = "SELECT coalesce(reloptions, '{}') FROM pg_class WHERE oid = $1::text::regclass";

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_of_the_tables_matches_a_provisioned_database() -> Result<()> {
    let stack = Stack::shared().await?;
    let relations = relations(&mut stack.shard(1).await?).await?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE);
    let kept = fs::read_to_string(&path).with_context(|| format!("read {PAGE}"))?;
    let made = tables::with_tables(&kept, &relations).map_err(anyhow::Error::msg)?;
    if env::var_os("UPDATE_REFERENCE").is_some() {
        fs::write(&path, made).with_context(|| format!("write {PAGE}"))?;
    } else {
        ensure!(
            kept == made,
            "{PAGE} does not match the database. Run: UPDATE_REFERENCE=1 make test TEST=the_reference"
        );
    }
    Ok(())
}

async fn relations(shard: &mut PgConnection) -> Result<Vec<Relation>> {
    let names: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&mut *shard).await?;
    let mut relations = Vec::new();
    for name in names {
        let columns: Vec<(String, String, bool, Option<String>)> =
            sqlx::query_as(COLUMNS).bind(&name).fetch_all(&mut *shard).await?;
        let columns = columns.into_iter().map(|(name, type_name, nullable, default)| Column {
            name,
            type_name,
            nullable,
            default,
        });
        relations.push(Relation {
            columns: columns.collect(),
            constraints: sqlx::query_scalar(CONSTRAINTS).bind(&name).fetch_all(&mut *shard).await?,
            indexes: sqlx::query_scalar(INDEXES).bind(&name).fetch_all(&mut *shard).await?,
            parameters: sqlx::query_scalar(PARAMETERS).bind(&name).fetch_one(&mut *shard).await?,
            name,
        });
    }
    Ok(relations)
}
