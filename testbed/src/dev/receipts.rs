//! What LocalStack forgets when it stops: the receipts of orders that were kept. They are queued again, and told about until
//! they are written.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::sleep;
use uuid::Uuid;

use super::running::{Running, database};
use crate::product::{self, Environment};
use crate::{Service, postgres};

/// LocalStack answers about a hundred times in a second; it is asked once for each user of 100,000 orders.
const DEADLINE: Duration = Duration::from_mins(15);

const TOLD_EVERY: Duration = Duration::from_secs(3);

/// Queues again what S3 does not have.
pub(super) async fn queue_again(folder: &Path, environment: Environment) -> Result<()> {
    let verified = product::verify(folder, environment, &["--repair", "--only", "receipts"], DEADLINE).await?;
    ensure!(verified.status.success(), "orderflow-producer verify ({}): {}", verified.status, verified.output);
    Ok(())
}

/// Says how many are written, until all are; or until S3 is gone again, which whoever starts it again begins anew.
pub(super) async fn tell(running: &Running) {
    if let Err(error) = tell_until_written(running).await {
        eprintln!("how many receipts are written again cannot be told: {error:#}");
    }
}

async fn tell_until_written(running: &Running) -> Result<()> {
    // Ids are made in the order of time: those of later orders do not count.
    let now = Uuid::now_v7();
    let total = waiting(running, now).await?;
    let mut left = total;
    while left > 0 && running.localstack.is_running() {
        sleep(TOLD_EVERY).await;
        left = waiting(running, now).await?;
        eprintln!("receipts that S3 forgot: {} of {total} written again", total - left.min(total));
    }
    Ok(())
}

async fn waiting(running: &Running, before: Uuid) -> Result<i64> {
    const COUNT: &str = "SELECT count(*) FROM receipt_jobs WHERE order_id < $1";
    let mut waiting = 0;
    for (number, postgres) in (1..).zip(&running.postgres) {
        let mut connection = postgres::connect(&postgres.dsn(&database(number))).await?;
        let of_shard: i64 = sqlx::query_scalar(COUNT).bind(before).fetch_one(&mut connection).await?;
        waiting += of_shard;
    }
    Ok(waiting)
}
