//! A reader of Kafka that is kept for queries which are repeated, each with a deadline. One query runs at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, TryLockError},
    time::{Duration, Instant},
};

use orderflow_service::kafka::{
    BrokerError, HasLastError,
    reader::{Deadline, Error, Ranges, Reader},
};
use rdkafka::{ClientConfig, consumer::Consumer, message::BorrowedMessage};

/// The time that a query may take beyond its deadline: a call of librdkafka notices it a little late.
const GRACE: Duration = Duration::from_millis(500);

/// Runs queries that share a client and their earlier results.
pub struct Queries<Known> {
    config: Arc<ClientConfig>,
    kept: Arc<Mutex<Kept<Known>>>,
}

#[derive(Default)]
struct Kept<Known> {
    reader: Option<Reader>,
    known: Known,
}

/// A query that runs.
pub struct Query<'queries, Known> {
    pub reader: &'queries Reader,
    /// The results of earlier queries that this one may use.
    pub known: &'queries mut Known,
    deadline: Instant,
}

impl<Known: Default + Send + 'static> Queries<Known> {
    /// Makes queries whose clients have `config`. If that names a group, its committed offsets can be read.
    pub fn new(config: ClientConfig) -> Self {
        Self { config: Arc::new(config), kept: Arc::default() }
    }

    /// Returns the result of `query`, which keeps to the deadline itself, or the reason why there is none.
    pub async fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        query: impl FnOnce(&mut Query<'_, Known>) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (config, kept, deadline) = (self.config.clone(), self.kept.clone(), Instant::now() + timeout);
        let running = tokio::task::spawn_blocking(move || run(&config, &kept, deadline, query));
        match tokio::time::timeout(timeout + GRACE, running).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err("no answer in time".to_owned()),
        }
    }
}

fn run<Known, T>(
    config: &ClientConfig,
    kept: &Mutex<Kept<Known>>,
    deadline: Instant,
    query: impl FnOnce(&mut Query<'_, Known>) -> Result<T, String>,
) -> Result<T, String> {
    let mut kept = match kept.try_lock() {
        Ok(kept) => kept,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        // An earlier query overran its deadline.
        Err(TryLockError::WouldBlock) => return Err("no answer in time".to_owned()),
    };
    let Kept { reader, known } = &mut *kept;
    let made = match reader.take() {
        Some(made) => made,
        None => Reader::new(config.clone()).map_err(|error| error.to_string())?,
    };
    let answer = query(&mut Query { reader: &made, known, deadline });
    // A client never reads its CA file again, which may have been replaced.
    let is_outdated = answer.is_err() && made.consumer().context().last_error().get() == Some(BrokerError::Certificate);
    *reader = (!is_outdated).then_some(made);
    answer
}

impl<Known> Query<'_, Known> {
    /// Returns the time that is left.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Counts the partitions of a topic; see [`Reader::partitions`].
    pub fn partitions(&self, topic: &str) -> Result<i32, Error> {
        self.reader.partitions(topic, Deadline::At(self.deadline))
    }

    /// Returns the first offset, and the one behind the last that can be read.
    pub fn extent(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        self.reader.extent(topic, partition, Deadline::At(self.deadline))
    }

    /// Returns the first offsets since a Unix time, of the partitions that have any.
    pub fn offsets_since(&self, topic: &str, partitions: i32, milliseconds: i64) -> Result<BTreeMap<i32, i64>, Error> {
        self.reader.offsets_since(topic, partitions, milliseconds, Deadline::At(self.deadline))
    }

    /// Returns the next offsets of the group, of the partitions that have one.
    pub fn committed(&self, topic: &str, partitions: i32) -> Result<BTreeMap<i32, i64>, Error> {
        self.reader.committed(topic, partitions, Deadline::At(self.deadline))
    }

    /// Reads ranges until `visit` returns false. Returns true if all was read, and false if `visit` or the deadline
    /// ended it.
    pub fn read(
        &mut self,
        topic: &str,
        ranges: &Ranges,
        mut visit: impl FnMut(&BorrowedMessage<'_>) -> bool,
    ) -> Result<bool, Error> {
        for record in self.reader.read(topic, ranges, Deadline::At(self.deadline))? {
            match record {
                Ok(record) if visit(&record) => {}
                Ok(_) | Err(Error::TimedOut { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
