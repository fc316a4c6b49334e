//! The receipt worker of one shard: claims jobs, PUTs receipts, deletes the jobs. A receipt is a pure function of its
//! order, so a job that is done twice writes the same object.
//!
//! While S3 is down the worker holds one job, tries that one again with growing pauses, and then another one; the rest stays where
//! it is. One receipt that S3 refuses holds up no other. An S3 that is slower than the worker is asked less at once (see
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
use orderflow_core::{Order, OrderId, receipt};
use orderflow_service::{
    Backoff, Dependency,
    failpoint::{self, defect},
    postgres::Pool,
    s3,
    shutdown::CancellationToken,
};
use sqlx::{FromRow, PgConnection, Row, postgres::PgRow};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    metrics::ShardMetrics,
    shard::{StoredOrder, order_columns},
};

/// Most PUTs in flight.
const IN_FLIGHT: usize = 32;

/// Jobs claimed at once, for each PUT that may be in flight.
const CLAIMED_FOR_EACH: usize = 8;

/// Failures of a claim until nothing more of it is begun: one may be the receipt's own.
const MOST_FAILURES: usize = 2;

/// Tries of one receipt while nothing is stored, until another one is tried: 250 ms to 4 s apart.
const PROBES: usize = 5;

/// How long a worker with nothing to do waits before it looks by itself.
const POLL: Duration = Duration::from_secs(1);

/// Shortest time between the beginnings of two claims that are not full: it is two statements for one receipt as for dozens. The
/// PUTs of such a claim are spread over it, since all at once they would hold up the requests that this process serves.
const PACE: Duration = Duration::from_millis(50);

/// Longest wait for an answer of the database.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest pause before a single receipt is tried again that failed while others were stored. Most of those failed because
/// S3 was going away just then, and should not wait long when it is back; one that S3 refuses costs a request each time.
const RETRY_CAP_SECONDS: f64 = 30.0;

/// What one claim takes at the longest.
pub fn longest_batch(put_timeout: Duration) -> Duration {
    put_timeout * CLAIMED_FOR_EACH as u32
}

/// How many PUTs may be in flight: halved by a claim of which some failed, and widened again by those that all succeed, as TCP does
/// it with packets. An S3 that cannot answer in time does the work of a request that nobody waits for any more all the same: were
/// it asked as much again, all its work could be of that kind, for ever.
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
    pub pool: Pool,
    pub client: Client,
    pub bucket: String,
    /// How long a claimed job is this worker's.
    pub lease: Duration,
    pub doorbell: Arc<Notify>,
    pub dependency: Dependency,
    pub metrics: ShardMetrics,
}

/// What a claim found.
enum Work {
    /// All that was asked for was there, so there may be more.
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
                    tracing::debug!(shard = self.shard.name, error = format!("{error:#}"), "receipts wait");
                    tokio::select! {
                        () = backoff.wait() => {}
                        () = stop.cancelled() => {}
                    }
                }
            }
        }
    }

    /// One claim, from start to end.
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
                // An S3 that is down is not asked 256 times.
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
            // A claim that was not full says nothing about more at once.
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
                tracing::warn!(order_id = %job.order.id, attempts = job.attempts, reason, "a receipt is tried again later");
                self.postpone(&job).await.context("postpone a receipt job")?;
            }
        }
        Ok(if claimed == most { Work::Full } else { Work::Rest })
    }

    /// Tries one receipt until S3 takes it, or it is another one's turn. True: S3 took it.
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
        let text = receipt::text(&job.order, &self.shard);
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(&job.order.receipt_s3_key)
            .content_type("text/plain; charset=utf-8")
            .body(ByteStream::from(text.into_bytes()));
        match put.send().await {
            Ok(_) => {
                self.dependency.up();
                Ok(())
            }
            Err(error) => Err(s3::explain(&error)),
        }
    }

    /// Claims the jobs that waited longest, by moving them into the future: whoever claims after sees them again only when
    /// the lease is over.
    async fn claim(&self, most: usize) -> anyhow::Result<Vec<Job>> {
        const CLAIM_JOBS: &str = concat!(
            "WITH due AS ( \
               SELECT order_id FROM receipt_jobs WHERE available_at <= now() \
               ORDER BY available_at, order_id LIMIT $1 FOR UPDATE SKIP LOCKED \
             ), claimed AS ( \
               UPDATE receipt_jobs SET available_at = now() + $2 * interval '1 second', attempts = attempts + 1 \
               FROM due WHERE receipt_jobs.order_id = due.order_id \
               RETURNING receipt_jobs.order_id, receipt_jobs.attempts \
             ) SELECT ",
            order_columns!(),
            ", claimed.attempts FROM claimed JOIN orders ON orders.id = claimed.order_id"
        );
        let lease = self.lease.as_secs_f64();
        self.ask(async |connection| {
            sqlx::query_as(CLAIM_JOBS).bind(most as i64).bind(lease).fetch_all(connection).await
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

    /// Ends the lease of jobs that nothing was tried for.
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
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error> + Clone,
    ) -> anyhow::Result<T> {
        Ok(self.pool.ask(ANSWER_TIMEOUT, question).await?)
    }
}

struct Job {
    order: Order,
    attempts: i32,
}

impl FromRow<'_, PgRow> for Job {
    /// As [`StoredOrder`], and behind its columns the attempts.
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self { order: StoredOrder::from_row(row)?.order, attempts: row.try_get("attempts")? })
    }
}
