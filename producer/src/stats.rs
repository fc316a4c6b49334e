//! The state of all parts, queried at most once a second however many clients ask. All parts are queried concurrently,
//! each with its own deadline, so that a part that is down is named and hides nothing else.

mod group;
mod snapshot;

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{join_all, join3},
};
use orderflow_core::Timestamp;
use orderflow_service::{failpoint, s3};
use tokio::sync::watch;

use crate::{
    dead_letters,
    feed::Feed,
    shard::{Figures, MOST_COUNTED, ReadError, Shard, Shards},
};
use group::Reach;
pub use group::{Answer, GroupProgress, Unhandled};
use snapshot::{DeadLetterCounts, Dependency, Notifications, ShardFigures};

pub use snapshot::Snapshot;

/// Age from which a round is too old for another client, so that a new one starts.
const FRESH: Duration = Duration::from_secs(1);

/// Longest wait for S3, and for Kafka. Shards have a deadline of their own.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for a round of queries. It exceeds all deadlines in the round.
pub const LONGEST: Duration = Duration::from_secs(8);

/// Longest time that a page of orders waits for the progress of the consumer group.
const GROUP_TIMEOUT: Duration = Duration::from_millis(500);

/// Age beyond which a round of queries no longer shows the progress of the consumer group.
const STALE: Duration = Duration::from_secs(5);

/// Most [`Ends`] that are remembered: five minutes of a page that asks each second.
const MOST_ENDS: usize = 300;

/// The statistics of all parts; clones share the latest round.
#[derive(Clone)]
pub struct Stats {
    sources: Arc<Sources>,
    latest: Arc<Mutex<Option<Flight>>>,
    /// The last round that was finished.
    done: Arc<Mutex<Option<Arc<Round>>>>,
    ends: Arc<Mutex<VecDeque<Ends>>>,
}

/// The sources that a round queries.
pub struct Sources {
    pub shards: Shards,
    pub feed: Feed,
    pub s3: aws_sdk_s3::Client,
    pub bucket: Arc<str>,
    pub consumer: GroupProgress,
    pub dead_letters: dead_letters::Handle,
}

/// The progress of the consumer group at the time of a round of queries.
#[derive(Clone, Debug)]
pub struct GroupState {
    /// Unhandled events, in the order of the partitions.
    pub partitions: Vec<Unhandled>,
    /// Times by shard, up to which all accepted orders had been published before the round. `None`: the shard gave no
    /// figures.
    pub published_through: Vec<Option<Timestamp>>,
}

struct Round {
    ended: Instant,
    snapshot: Snapshot,
    group: Option<GroupState>,
}

/// The end offsets of the partitions in one round, and the moments up to which orders had been published by then.
struct Ends {
    published_through: Vec<Option<Timestamp>>,
    ends: Vec<i64>,
}

/// A round that runs or is done, and the channel on which its clients wait.
struct Flight {
    began: Instant,
    found: watch::Receiver<Option<Arc<Round>>>,
}

impl Stats {
    pub fn new(sources: Sources) -> Self {
        Self { sources: Arc::new(sources), latest: Arc::default(), done: Arc::default(), ends: Arc::default() }
    }

    /// Returns the current figures, or `None` if there are none in time, whatever delays them.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        Some(self.await_round(LONGEST).await?.snapshot.clone())
    }

    /// Returns the progress of the consumer group, or `None` while Kafka does not report it.
    pub async fn group(&self) -> Option<GroupState> {
        let done = |age: Duration| lock(&self.done).clone().filter(|round| round.ended.elapsed() < age);
        let round = match done(FRESH) {
            Some(fresh) => fresh,
            // An S3 or a shard that does not answer delays the round, but not the progress of the group.
            None => self.await_round(GROUP_TIMEOUT).await.or_else(|| done(STALE))?,
        };
        round.group.clone()
    }

    async fn await_round(&self, longest: Duration) -> Option<Arc<Round>> {
        let mut flight = self.join_flight();
        // The channel closes without an answer if the round panicked or the process ends.
        let found = tokio::time::timeout(longest, flight.wait_for(Option::is_some)).await.ok()?.ok()?;
        found.clone()
    }

    fn join_flight(&self) -> watch::Receiver<Option<Arc<Round>>> {
        let mut latest = lock(&self.latest);
        if let Some(flight) = &*latest {
            let is_done = flight.found.borrow().is_some();
            let is_lost = !is_done && flight.found.has_changed().is_err();
            if !is_lost && (!is_done || flight.began.elapsed() < FRESH) {
                return flight.found.clone();
            }
        }
        let (answer, found) = watch::channel(None);
        let (sources, ends, done) = (self.sources.clone(), self.ends.clone(), self.done.clone());
        // A separate task: the client that started the round may disconnect while others wait for it. Its deadlines end
        // it.
        tokio::spawn(async move {
            let round = Arc::new(sources.query(&ends).await);
            *lock(&done) = Some(round.clone());
            answer.send(Some(round))
        });
        *latest = Some(Flight { began: Instant::now(), found: found.clone() });
        found
    }
}

impl Sources {
    async fn query(&self, ends: &Mutex<VecDeque<Ends>>) -> Round {
        let queried = async {
            let at = Timestamp::now();
            let shards = join_all(self.shards.iter().map(|shard| catch_panic(shard.figures()))).await;
            // Queried after the shards, so that everything they had published is before the end offsets.
            let group = catch_panic(self.consumer.query(ANSWER_TIMEOUT)).await.unwrap_or_else(|| Err(FAULT.to_owned()));
            (at, shards, group)
        };
        let counts = catch_panic(self.dead_letters.counts(ANSWER_TIMEOUT));
        let ((at, figures, group), bucket, dead_letters) = join3(queried, catch_panic(self.bucket()), counts).await;
        let dead_letters = dead_letters.flatten();
        let published_through: Vec<_> = std::iter::zip(&*self.shards, &figures)
            .map(|(shard, figures)| published_through(shard, figures.as_ref()?.as_ref().ok()?, at))
            .collect();
        let (total, per_second) = self.feed.figures();
        let (kafka, consumer, partitions, group) = match group {
            Ok(Answer { consumer, partitions, reach }) => {
                let group =
                    GroupState { partitions: remember(&mut lock(ends), &published_through, reach), published_through };
                (Dependency::up(), consumer, partitions, Some(group))
            }
            Err(reason) => (Dependency::down(reason), self.consumer.unknown(), Vec::new(), None),
        };
        let snapshot = Snapshot {
            at: Timestamp::now(),
            epoch: self.feed.epoch(),
            notifications: Notifications { total, per_second },
            shards: std::iter::zip(&*self.shards, figures)
                .map(|(shard, figures)| shard_figures(shard, figures))
                .collect(),
            s3: bucket.unwrap_or_else(|| Dependency::down(FAULT.to_owned())),
            kafka,
            consumer,
            partitions,
            dead_letters: DeadLetterCounts {
                waiting: dead_letters.map(|counts| counts.waiting),
                total: dead_letters.map(|counts| counts.total),
            },
        };
        Round { ended: Instant::now(), snapshot, group }
    }

    async fn bucket(&self) -> Dependency {
        failpoint::panics("stats::bucket", "s3");
        failpoint::held_up("stats::held-up").await;
        let head = self.s3.head_bucket().bucket(&*self.bucket).send();
        match tokio::time::timeout(ANSWER_TIMEOUT, head).await {
            Ok(Ok(_)) => Dependency::up(),
            Ok(Err(error)) if error.raw_response().is_some_and(|response| response.status().as_u16() == 404) => {
                Dependency::down(format!("the bucket {} does not exist: run orderflow-provision", self.bucket))
            }
            Ok(Err(error)) => Dependency::down(s3::explain(&error)),
            Err(_) => Dependency::down("no answer in time".to_owned()),
        }
    }
}

/// The reason that is reported for a source whose query panicked.
const FAULT: &str = "internal error of the producer: its log has the backtrace";

/// Awaits a query and returns `None` if it panics. A panic then costs one source, not the round and the requests that
/// wait for it.
async fn catch_panic<T>(query: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(query).catch_unwind().await.ok()
}

/// Returns the moment up to which the shard's orders had been published when its outbox was read. `at` is just before
/// the read.
fn published_through(shard: &Shard, figures: &Figures, at: Timestamp) -> Option<Timestamp> {
    let moment = |microseconds: Option<i64>| microseconds.map_or(Some(at), Timestamp::from_unix_microseconds);
    // The rows of a write whose commit hangs are in no table yet, however long ago its orders were accepted.
    let (waiting, writing) = (moment(figures.outbox_oldest)?, moment(figures.oldest_write)?);
    // An order that was accepted before that moment is committed by then, and its event is in the outbox or has left
    // it.
    Some(at.min(waiting).min(writing).before(shard.longest_wait()))
}

/// Combines the unhandled events with the end offsets of earlier rounds. Once the group has passed an end offset of an
/// earlier round, all events that had been published by then are handled.
fn remember(before: &mut VecDeque<Ends>, published_through: &[Option<Timestamp>], reach: Vec<Reach>) -> Vec<Unhandled> {
    before.retain(|ends| ends.ends.len() == reach.len());
    before.push_back(Ends {
        published_through: published_through.to_vec(),
        ends: reach.iter().map(|reach| reach.high).collect(),
    });
    if before.len() > MOST_ENDS {
        before.pop_front();
    }
    let handled_through = |partition: usize, position: Option<i64>| {
        let passed =
            || before.iter().filter(move |ends| position.is_some_and(|position| ends.ends[partition] <= position));
        (0..published_through.len())
            .map(|shard| passed().filter_map(|ends| ends.published_through[shard]).max())
            .collect()
    };
    reach
        .into_iter()
        .enumerate()
        .map(|(partition, Reach { position, unhandled, .. })| Unhandled {
            handled_through: handled_through(partition, position),
            ..unhandled
        })
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shard_figures(shard: &Shard, figures: Option<Result<Figures, ReadError>>) -> ShardFigures {
    let found = figures.map_or(Err(FAULT.to_owned()), |figures| figures.map_err(|error| error.reason));
    let (figures, reason) = match (found, shard.down_reason()) {
        (Ok(figures), None) => (Some(figures), None),
        // The reason from the writers is more precise than a missing answer.
        (_, Some(down_reason)) => (None, Some(down_reason)),
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
        dead_events: figures.map(|figures| figures.refused_events),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_published_before_a_passed_end_offset_are_handled() {
        let moment = |seconds: i64| Timestamp::from_unix_microseconds(seconds * 1_000_000);
        let reach = |position, high| {
            vec![Reach { position: Some(position), high, unhandled: Unhandled::default(), oldest: None }]
        };
        let mut before = VecDeque::new();
        let handled = |before: &mut VecDeque<Ends>, at, reach| {
            remember(before, &[moment(at), None], reach)[0].handled_through.clone()
        };
        assert_eq!(handled(&mut before, 10, reach(0, 100)), [None, None]);
        // The group falls further behind, but the events that it has passed are still known.
        assert_eq!(handled(&mut before, 20, reach(99, 900)), [None, None]);
        assert_eq!(handled(&mut before, 30, reach(100, 1700)), [moment(10), None]);
        assert_eq!(handled(&mut before, 40, reach(1000, 9000)), [moment(20), None]);
        // The topic has one more partition: earlier rounds do not show where its events are.
        // Skipped or lost offsets prove nothing.
        let lost = vec![Reach { position: None, high: 9000, unhandled: Unhandled::default(), oldest: None }];
        assert_eq!(handled(&mut before, 45, lost), [None, None]);
        let grown = [reach(1000, 9000), reach(0, 0)].concat();
        assert_eq!(remember(&mut before, &[moment(50), None], grown)[1].handled_through, [moment(50), None]);
        assert_eq!(before.len(), 1);
    }
}
