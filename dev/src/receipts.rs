//! Restores the receipts that LocalStack forgets when it stops: queues them again, and prints the progress until they
//! are written.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use orderflow_testbed::{
    LocalStack, Postgres, Service, postgres,
    product::{self, Environment},
};
use tokio::time::sleep;
use uuid::Uuid;

use crate::environment::database;

/// The longest that `verify` takes. It sends LocalStack one request for each user of 100,000 orders, and LocalStack
/// answers about a hundred in a second.
const DEADLINE: Duration = Duration::from_mins(15);

const INTERVAL: Duration = Duration::from_secs(3);

/// Queues the receipts again that S3 does not have.
pub(super) async fn queue_again(folder: &Path, environment: Environment) -> Result<()> {
    let verified = product::verify(folder, environment, &["--repair", "--only", "receipts"], DEADLINE).await?;
    ensure!(verified.status.success(), "orderflow-producer verify ({}): {}", verified.status, verified.output);
    Ok(())
}

/// Prints how many receipts are written again, until all are or S3 is down again.
pub(super) async fn report(shards: &[Arc<Postgres>], s3: &LocalStack) {
    if let Err(error) = report_until_written(shards, s3).await {
        eprintln!("cannot count the receipts that are written again: {error:#}");
    }
}

async fn report_until_written(shards: &[Arc<Postgres>], s3: &LocalStack) -> Result<()> {
    // Ids are ordered by time, so those of later orders do not count.
    let now = Uuid::now_v7();
    let total = waiting(shards, now).await?;
    let mut left = total;
    while left > 0 && s3.is_running() {
        sleep(INTERVAL).await;
        left = waiting(shards, now).await?;
        eprintln!("receipts that S3 forgot: {} of {total} written again", total - left.min(total));
    }
    Ok(())
}

async fn waiting(shards: &[Arc<Postgres>], before: Uuid) -> Result<i64> {
    const COUNT: &str = "SELECT count(*) FROM receipt_jobs WHERE order_id < $1";
    let mut waiting = 0;
    for (number, postgres) in (1..).zip(shards) {
        let mut connection = postgres::connect(&postgres.dsn(&database(number))).await?;
        let of_shard: i64 = sqlx::query_scalar(COUNT).bind(before).fetch_one(&mut connection).await?;
        waiting += of_shard;
    }
    Ok(waiting)
}
