//! How all parts do, found out at most once a second for all who ask. Each part has a deadline of its own and is asked beside
//! the others, so that one that is down is named and hides nothing else.

mod group;
mod snapshot;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::{join_all, join4};
use orderflow_core::Timestamp;
use orderflow_service::s3;
use tokio::sync::watch;

use crate::{
    dead_letters::Office,
    feed::Feed,
    shard::{Figures, MOST_COUNTED, Shard},
};
pub use group::GroupProgress;
use snapshot::{DeadLetterCounts, Dependency, Notifications, ShardFigures};

pub use snapshot::Snapshot;

/// How old an answer may be before the next one who asks gets a new one.
const FRESH: Duration = Duration::from_secs(1);

/// Longest wait for S3, and for Kafka. A shard has its own.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Cheap to clone; clones share.
#[derive(Clone)]
pub struct Stats {
    sources: Arc<Sources>,
    latest: Arc<Mutex<Option<Flight>>>,
}

/// Who is asked.
pub struct Sources {
    pub shards: Arc<[Shard]>,
    pub feed: Feed,
    pub s3: aws_sdk_s3::Client,
    pub bucket: Arc<str>,
    pub consumer: GroupProgress,
    pub dead_letters: Office,
}

/// One look, under way or done, and who waits for it.
struct Flight {
    began: Instant,
    snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
}

impl Stats {
    pub fn new(sources: Sources) -> Self {
        Self { sources: Arc::new(sources), latest: Arc::default() }
    }

    pub async fn snapshot(&self) -> Arc<Snapshot> {
        loop {
            let mut snapshot = self.join_flight();
            // Gone without an answer: the look panicked, which is logged, or the process ends.
            if let Ok(found) = snapshot.wait_for(Option::is_some).await
                && let Some(found) = &*found
            {
                return found.clone();
            }
            tokio::time::sleep(FRESH).await;
        }
    }

    fn join_flight(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = &*latest {
            let is_done = flight.snapshot.borrow().is_some();
            let is_lost = !is_done && flight.snapshot.has_changed().is_err();
            if !is_lost && (!is_done || flight.began.elapsed() < FRESH) {
                return flight.snapshot.clone();
            }
        }
        let (found, snapshot) = watch::channel(None);
        let sources = self.sources.clone();
        // A task of its own: the one who asked may go away, and others wait for the same.
        tokio::spawn(async move { found.send(Some(Arc::new(sources.look().await))) });
        *latest = Some(Flight { began: Instant::now(), snapshot: snapshot.clone() });
        snapshot
    }
}

impl Sources {
    async fn look(&self) -> Snapshot {
        let (shards, bucket, group, dead_letters) = join4(
            join_all(self.shards.iter().map(shard)),
            self.bucket(),
            self.consumer.look(ANSWER_TIMEOUT),
            self.dead_letters.counts(ANSWER_TIMEOUT),
        )
        .await;
        let (total, per_second) = self.feed.figures();
        let (kafka, consumer, partitions) = match group {
            Ok((consumer, partitions)) => (Dependency::up(), consumer, partitions),
            Err(reason) => (Dependency::down(reason), self.consumer.unknown(), Vec::new()),
        };
        Snapshot {
            at: Timestamp::now(),
            epoch: self.feed.epoch(),
            notifications: Notifications { total, per_second },
            shards,
            s3: bucket,
            kafka,
            consumer,
            partitions,
            dead_letters: DeadLetterCounts {
                waiting: dead_letters.map(|counts| counts.waiting),
                total: dead_letters.map(|counts| counts.total),
            },
        }
    }

    async fn bucket(&self) -> Dependency {
        let asked = self.s3.head_bucket().bucket(&*self.bucket).send();
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(_)) => Dependency::up(),
            Ok(Err(error)) if error.raw_response().is_some_and(|response| response.status().as_u16() == 404) => {
                Dependency::down(format!("the bucket {} is not there: run orderflow-provision", self.bucket))
            }
            Ok(Err(error)) => Dependency::down(s3::explain(&error)),
            Err(_) => Dependency::down("no answer in time".to_owned()),
        }
    }
}

async fn shard(shard: &Shard) -> ShardFigures {
    let found = shard.figures().await.map_err(|error| error.reason);
    let (figures, reason) = match (found, shard.trouble()) {
        (Ok(figures), None) => (Some(figures), None),
        // What writing has found out says more than that there was no answer.
        (_, Some(trouble)) => (None, Some(trouble)),
        (Err(reason), None) => (None, Some(reason)),
    };
    let estimated = figures.is_some_and(|figures| figures.orders_counted > MOST_COUNTED);
    let orders = |figures: Figures| {
        if estimated { figures.orders_estimate.max(figures.orders_counted) } else { figures.orders_counted }
    };
    ShardFigures {
        name: shard.name().to_owned(),
        users: shard.shard().users(),
        up: reason.is_none(),
        reason,
        orders: figures.map(orders),
        orders_estimated: figures.map(|_| estimated),
        outbox: figures.map(|figures| figures.outbox),
        outbox_age_seconds: figures.and_then(|figures| figures.outbox_age),
        receipt_jobs: figures.map(|figures| figures.receipt_jobs),
        receipt_jobs_age_seconds: figures.and_then(|figures| figures.receipt_jobs_age),
        dead_events: figures.map(|figures| figures.dead_events),
    }
}
