//! The receipt worker of one shard: claims jobs, PUTs receipts, deletes the jobs. A receipt is a pure function of its
//! order, so a job that is done twice writes the same object.
//!
//! While S3 is down the worker retries one job with growing pauses, and then another one; all other jobs stay in the
//! table. A receipt that S3 refuses delays no other. If S3 is slower than the worker, fewer PUTs are in flight (see
//! [`Window`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use aws_sdk_s3::{Client, primitives::ByteStream};
use futures_util::{StreamExt, stream};
use orderflow_core::{MapEpoch, Order, OrderId, receipt};
use orderflow_service::{
    Backoff, Dependency,
    failpoint::{self, defect},
    postgres::Pool,
    s3,
    shutdown::CancellationToken,
    traces::{self, Builder, KeyValue, Span, SpanKind},
};
use sqlx::{FromRow, PgConnection, Row, postgres::PgRow};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    metrics::ShardMetrics,
    shard::{StoredOrder, maps::Maps, order_columns},
};

/// Most PUTs in flight.
const IN_FLIGHT: usize = 32;

/// Jobs claimed at once, for each PUT that may be in flight.
const CLAIMED_FOR_EACH: usize = 8;

/// Failures of a claim after which it starts no further PUT; a single failure may be the receipt's own.
const MOST_FAILURES: usize = 2;

/// Retries of one receipt while nothing is stored, 250 ms to 4 s apart, before another one is tried.
const PROBES: usize = 5;

/// Longest time for which an idle worker waits before it polls.
const POLL: Duration = Duration::from_secs(1);

/// Shortest time between the beginnings of two claims that are not full: a claim is two statements for one receipt as
/// for dozens. Its PUTs are spread over this time, since at once they would delay the requests that this process
/// serves.
const PACE: Duration = Duration::from_millis(50);

/// Longest wait for an answer of the database.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest pause before the retry of a receipt that failed while others were stored. Most of these failed because S3
/// was just going down, and should not wait long once it is back; one that S3 refuses costs a request each time.
const RETRY_CAP_SECONDS: f64 = 30.0;

/// Returns the longest time of one claim.
pub fn longest_batch(put_timeout: Duration) -> Duration {
    put_timeout * CLAIMED_FOR_EACH as u32
}

/// The number of PUTs that may be in flight: halved by a claim with failures, and widened by full claims without any,
/// like the congestion window of TCP. An overloaded S3 also works on requests that have timed out: with as many PUTs as
/// before it might work on nothing else, for ever.
#[derive(Debug)]
struct Window(usize);

impl Window {
    /// PUTs in flight that a claim without a timeout adds.
    const STEP: usize = 4;

    fn claim(&self) -> usize {
        self.0 * CLAIMED_FOR_EACH
    }

    fn widen(&mut self) {
        self.0 = (self.0 + Self::STEP).min(IN_FLIGHT);
    }

    fn halve(&mut self) {
        self.0 = (self.0 / 2).max(1);
    }
}

#[derive(Clone)]
pub struct Receipts {
    pub shard: orderflow_core::Shard,
    pub maps: Maps,
    pub pool: Pool,
    pub client: Client,
    pub bucket: String,
    /// Time for which a claimed job belongs to this worker.
    pub lease: Duration,
    pub doorbell: Arc<Notify>,
    pub dependency: Dependency,
    pub metrics: ShardMetrics,
}

/// The result of a claim.
enum Work {
    /// The claim was full, so more jobs may wait.
    Full,
    Rest,
}

impl Receipts {
    pub async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut window = Window(IN_FLIGHT);
        failpoint::panics("receipts::run", &self.shard.name);
        while !stop.is_cancelled() {
            let began = Instant::now();
            match self.work(&mut window, &stop).await {
                Ok(Work::Full) => backoff.reset(),
                Ok(Work::Rest) => {
                    backoff.reset();
                    let woken = async {
                        let _ = timeout(POLL, self.doorbell.notified()).await;
                        sleep_until(began + PACE).await;
                    };
                    tokio::select! {
                        () = woken => {}
                        () = stop.cancelled() => {}
                    }
                }
                Err(error) => {
                    tracing::debug!(
                        shard = self.shard.name,
                        error = format!("{error:#}"),
                        "cannot write receipts; retrying"
                    );
                    tokio::select! {
                        () = backoff.wait() => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    /// Handles one claim from start to end.
    async fn work(&self, window: &mut Window, stop: &CancellationToken) -> anyhow::Result<Work> {
        let most = window.claim();
        let jobs = self.claim(most).await.context("claim receipt jobs")?;
        let claimed = jobs.len();
        if claimed == 0 {
            return Ok(Work::Rest);
        }
        if defect("receipts::deletes-before-put") {
            self.delete(&jobs.iter().map(|job| job.order.id).collect::<Vec<_>>()).await?;
        }
        let (began, apart) = (Instant::now(), if claimed < most { PACE / claimed as u32 } else { Duration::ZERO });
        let failures = AtomicUsize::new(0);
        let results: Vec<_> = stream::iter(jobs.into_iter().zip(0..))
            .map(async |(job, position)| {
                sleep_until(began + apart * position).await;
                // An S3 that is down does not get 256 requests.
                if failures.load(Ordering::Relaxed) >= MOST_FAILURES || stop.is_cancelled() {
                    return (job, None);
                }
                let result = self.put(&job).await;
                failures.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
                (job, Some(result))
            })
            .buffer_unordered(window.0)
            .collect()
            .await;

        let (mut stored, mut failed, mut untried) = (Vec::new(), Vec::new(), Vec::new());
        for (job, result) in results {
            match result {
                Some(Ok(())) => stored.push(job.order.id),
                Some(Err(reason)) => failed.push((job, reason)),
                None => untried.push(job.order.id),
            }
        }
        match failed.len() {
            // A claim that was not full does not show whether S3 can take more.
            0 if claimed == most => window.widen(),
            0 => {}
            _ => window.halve(),
        }
        fail::fail_point!("receipts::before-delete", |_| std::process::abort());
        self.delete(&stored).await.context("delete done receipt jobs")?;
        self.metrics.receipts_stored.inc_by(stored.len() as u64);
        self.metrics.receipts_failed.inc_by(failed.len() as u64);
        self.give_back(&untried).await.context("give back receipt jobs")?;
        if stored.is_empty()
            && let Some((job, reason)) = failed.pop()
        {
            self.dependency.down(&reason);
            let rest: Vec<OrderId> = failed.iter().map(|(job, _)| job.order.id).collect();
            self.give_back(&rest).await.context("give back receipt jobs")?;
            if !self.probe(&job, stop).await? {
                *window = Window(1);
                return Ok(Work::Full);
            }
        } else {
            for (job, reason) in failed {
                tracing::warn!(
                    order_id = %job.order.id,
                    attempts = job.attempts,
                    reason,
                    "cannot write a receipt; retrying later"
                );
                self.postpone(&job).await.context("postpone a receipt job")?;
            }
        }
        Ok(if claimed == most { Work::Full } else { Work::Rest })
    }

    /// Retries one receipt until S3 stores it, or another one is due. Returns true if S3 stored it.
    async fn probe(&self, job: &Job, stop: &CancellationToken) -> anyhow::Result<bool> {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
        for _ in 0..PROBES {
            tokio::select! {
                () = backoff.wait() => {}
                () = stop.cancelled() => return self.give_back(&[job.order.id]).await.map(|()| false),
            }
            match self.put(job).await {
                Ok(()) => {
                    self.metrics.receipts_stored.inc();
                    return self.delete(&[job.order.id]).await.map(|()| true);
                }
                Err(reason) => {
                    self.metrics.receipts_failed.inc();
                    self.dependency.down(reason);
                }
            }
        }
        self.postpone(job).await.context("postpone a receipt job").map(|()| false)
    }

    async fn put(&self, job: &Job) -> Result<(), String> {
        fail::fail_point!("receipts::before-put", |_| std::process::abort());
        let text = self.maps.of(job.map_epoch, |map| receipt::text(&job.order, map.shard_of(&job.order.user_id)));
        let text = text.ok_or_else(|| format!("the shard map of epoch {} is not known", job.map_epoch))?;
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(&job.order.receipt_s3_key)
            .content_type("text/plain; charset=utf-8")
            .body(ByteStream::from(text.into_bytes()));
        let mut span = self.span(job);
        match put.send().await {
            Ok(_) => {
                self.dependency.up();
                Ok(())
            }
            Err(error) => {
                let reason = s3::explain(&error);
                if let Some(span) = &mut span {
                    span.fail("s3", &reason);
                }
                Err(reason)
            }
        }
    }

    /// Starts the span of a PUT. `None` if the order is not recorded.
    fn span(&self, job: &Job) -> Option<Span> {
        let order = traces::recorded(job.traceparent.as_deref())?;
        let mut span = Builder::continuation("put receipt".to_owned(), SpanKind::Client, order).start()?;
        span.set([
            KeyValue::new("rpc.system", "aws-api"),
            KeyValue::new("rpc.service", "S3"),
            KeyValue::new("rpc.method", "PutObject"),
            KeyValue::new("aws.s3.bucket", self.bucket.clone()),
            KeyValue::new("orderflow.order.id", job.order.id.to_string()),
            KeyValue::new("orderflow.shard", self.shard.name.clone()),
            KeyValue::new("orderflow.attempt", i64::from(job.attempts)),
        ]);
        Some(span)
    }

    /// Claims the jobs that have waited longest, by moving them into the future: other workers see them again only
    /// after the lease.
    async fn claim(&self, most: usize) -> anyhow::Result<Vec<Job>> {
        const CLAIM_JOBS: &str = concat!(
            "WITH due AS ( \
               SELECT order_id FROM receipt_jobs WHERE available_at <= now() \
               ORDER BY available_at, order_id LIMIT $1 FOR UPDATE SKIP LOCKED \
             ), claimed AS ( \
               UPDATE receipt_jobs SET available_at = now() + $2 * interval '1 second', attempts = attempts + 1 \
               FROM due WHERE receipt_jobs.order_id = due.order_id \
               RETURNING receipt_jobs.order_id, receipt_jobs.attempts, receipt_jobs.traceparent \
             ) SELECT ",
            order_columns!(),
            ", claimed.attempts, claimed.traceparent FROM claimed JOIN orders ON orders.id = claimed.order_id"
        );
        let lease = self.lease.as_secs_f64();
        self.ask(async |connection| {
            let query = sqlx::query_as(CLAIM_JOBS).bind(most as i64).bind(lease);
            let jobs: Vec<Job> = query.fetch_all(&mut *connection).await?;
            self.maps.know(connection, jobs.iter().map(|job| job.map_epoch)).await?;
            Ok(jobs)
        })
        .await
    }

    async fn delete(&self, done: &[OrderId]) -> anyhow::Result<()> {
        if done.is_empty() {
            return Ok(());
        }
        const DELETE: &str = "DELETE FROM receipt_jobs WHERE order_id = ANY($1)";
        self.ask(async |connection| sqlx::query(DELETE).bind(done).execute(connection).await).await.map(drop)
    }

    /// Ends the lease of jobs that were not tried.
    async fn give_back(&self, jobs: &[OrderId]) -> anyhow::Result<()> {
        if jobs.is_empty() {
            return Ok(());
        }
        const GIVE_BACK: &str = "UPDATE receipt_jobs SET available_at = now(), attempts = attempts - 1 \
                                 WHERE order_id = ANY($1)";
        self.ask(async |connection| sqlx::query(GIVE_BACK).bind(jobs).execute(connection).await).await.map(drop)
    }

    async fn postpone(&self, job: &Job) -> anyhow::Result<()> {
        let seconds = f64::from(job.attempts).exp2().min(RETRY_CAP_SECONDS);
        const POSTPONE: &str =
            "UPDATE receipt_jobs SET available_at = now() + $2 * interval '1 second' WHERE order_id = $1";
        let postpone = async |connection: &mut PgConnection| {
            sqlx::query(POSTPONE).bind(job.order.id).bind(seconds).execute(connection).await
        };
        self.ask(postpone).await.map(drop)
    }

    async fn ask<T>(
        &self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> anyhow::Result<T> {
        Ok(self.pool.ask(ANSWER_TIMEOUT, query).await?)
    }
}

struct Job {
    order: Order,
    map_epoch: MapEpoch,
    attempts: i32,
    traceparent: Option<String>,
}

impl FromRow<'_, PgRow> for Job {
    /// Reads the columns of [`StoredOrder`], and after them those of the job.
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let StoredOrder { order, map_epoch, .. } = StoredOrder::from_row(row)?;
        Ok(Self { order, map_epoch, attempts: row.try_get("attempts")?, traceparent: row.try_get("traceparent")? })
    }
}
