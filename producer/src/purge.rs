//! Forgets idempotency keys that are older than they promise to be kept, a slice at a time.

use std::time::Duration;

use orderflow_service::{
    postgres::{AskError, Pool},
    shutdown::CancellationToken,
};

use sqlx::PgConnection;

/// How long a key is kept at least.
const KEPT: &str = "24 hours";

/// Keys deleted by one statement.
const SLICE: u64 = 1000;

/// Pause between two looks for old keys.
const INTERVAL: Duration = Duration::from_secs(60);

/// Longest wait for an answer of the database.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Purges one shard until `stop`. Safe beside other processes that do the same.
pub async fn run(pool: Pool, shard: String, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        while !stop.is_cancelled() {
            match slice(&pool).await {
                Ok(SLICE) => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(shard, %error, "old idempotency keys are purged later");
                    break;
                }
            }
        }
    }
}

async fn slice(pool: &Pool) -> Result<u64, AskError> {
    const PURGE: &str = "DELETE FROM idempotency_keys WHERE (user_id, key) IN ( \
        SELECT user_id, key FROM idempotency_keys WHERE created_at < now() - $1::text::interval \
        ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)";
    let purge = async |connection: &mut PgConnection| {
        sqlx::query(PURGE).bind(KEPT).bind(SLICE as i64).execute(connection).await
    };
    Ok(pool.ask(TIMEOUT, purge).await?.rows_affected())
}
