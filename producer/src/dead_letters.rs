//! Dead letters for the API: the blocking calls of `orderflow_dead_letters`, bounded in number and in time, and one
//! replay at a time.

use std::{
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use orderflow_core::Timestamp;
use orderflow_dead_letters::{
    CountCache, Counts, DeadLetters, Description, Page, Replay, SeveralPartitions, TakenOver, letter::Source,
};
use orderflow_service::{kafka::reader::Deadline, shutdown::CancellationToken};
use rdkafka::{Message, message::BorrowedMessage};
use tokio::{sync::Semaphore, time::timeout};

use crate::quota::Quota;

/// Lists read at once: each has a Kafka client of its own, and up to 8 MiB of letters in it.
const MOST_READERS: usize = 4;

/// Longest time for a list, including all its calls to Kafka.
const READING: Duration = Duration::from_secs(5);

/// Time for which a count is reused: each needs a Kafka client of its own.
const COUNTED: Duration = Duration::from_secs(5);

/// Time after which a replay begins no further transaction; the remaining letters wait for the next replay.
const REPLAYING: Duration = Duration::from_secs(6);

/// Longest time that a replay may then take to end its transaction in progress.
const SETTLING: Duration = Duration::from_secs(6);

/// Most bytes of a value that are shown.
const MOST_VALUE: usize = 2 * 1024;

/// Most bytes of a key, of a reason and of a topic's name that are shown.
const MOST_TEXT: usize = 512;

/// Access to the dead letters; clones share its limits and counts.
#[derive(Clone)]
pub struct Handle {
    letters: DeadLetters,
    /// True if this process may replay.
    replay: bool,
    readers: Quota,
    replaying: Arc<Semaphore>,
    known: Arc<Mutex<CountCache>>,
    counted: Arc<Mutex<Option<(Instant, Counts)>>>,
    stop: CancellationToken,
}

/// A dead letter to show: its texts are cut, and invalid UTF-8 in them is replaced.
#[derive(Debug)]
pub struct Letter {
    pub offset: i64,
    /// The time at which a consumer could not read its event.
    pub at: Timestamp,
    pub reason: String,
    /// The place of its event; `None` if no consumer wrote the letter.
    pub source: Option<Source>,
    pub key: Option<String>,
    pub value: String,
    /// Length of the whole value.
    pub value_bytes: usize,
    /// True until it is replayed.
    pub waiting: bool,
}

#[derive(Debug)]
pub enum Error {
    /// Kafka did not answer, for this reason, which holds no secrets.
    Kafka(String),
    SeveralPartitions(SeveralPartitions),
    TooManyReaders,
    ReplayIsOff,
    ReplayUnderWay,
}

impl Handle {
    pub fn new(letters: DeadLetters, replay: bool, share: u8, stop: CancellationToken) -> Self {
        Self {
            letters,
            replay,
            readers: Quota::new(MOST_READERS, share),
            replaying: Arc::new(Semaphore::new(1)),
            known: Arc::default(),
            counted: Arc::default(),
            stop,
        }
    }

    pub fn may_replay(&self) -> bool {
        self.replay
    }

    /// Returns a page of letters, newest first, and the counts of all.
    pub async fn list(
        &self,
        before: Option<i64>,
        limit: usize,
        client: Option<IpAddr>,
    ) -> Result<(Page<Letter>, Counts), Error> {
        let place = self.readers.try_take(1, client).ok_or(Error::TooManyReaders)?;
        let (letters, known) = (self.letters.clone(), self.known.clone());
        let until = Instant::now() + READING;
        blocking(READING, move || {
            let _place = place;
            let letters = letters.open(Deadline::At(until))?;
            let page = letters.page(before, limit, Letter::new)?;
            // Another count holds this lock no longer than until its deadline.
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            Ok((page, letters.count(&mut known)?))
        })
        .await
    }

    /// Returns the counts, at most 5 s old. `None` if Kafka does not answer in time.
    pub async fn counts(&self, deadline: Duration) -> Option<Counts> {
        let counted = *self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, counts)) = counted
            && when.elapsed() < COUNTED
        {
            return Some(counts);
        }
        let place = self.readers.try_take(1, None)?;
        let (letters, known) = (self.letters.clone(), self.known.clone());
        let until = Instant::now() + deadline;
        let counting = blocking(deadline, move || {
            let _place = place;
            let letters = letters.open(Deadline::At(until))?;
            letters.count(&mut known.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let counts = counting.await.inspect_err(|error| tracing::debug!(?error, "cannot count dead letters")).ok();
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = counts.map(|counts| (Instant::now(), counts));
        counts
    }

    /// Replays the waiting letters up to and including this offset, each once, and returns their number.
    pub async fn replay(&self, through: i64) -> Result<usize, Error> {
        if !self.replay {
            return Err(Error::ReplayIsOff);
        }
        // Held by the work, not by the request, which its client may abandon.
        let permit = self.replaying.clone().try_acquire_owned().map_err(|_| Error::ReplayUnderWay)?;
        let (letters, stop) = (self.letters.clone(), self.stop.child_token());
        let began = Instant::now();
        // A client that disconnects also ends the replay, after the transaction in progress.
        let overdue = stop.clone().drop_guard();
        let mut replaying = pin!(blocking(REPLAYING + SETTLING, move || {
            let _permit = permit;
            // This detects a Kafka that is down, and keeps a replay without letters from interrupting another one.
            if !letters.open(Deadline::At(began + READING))?.may_wait_through(through)? {
                return Ok(0);
            }
            let deadline = Deadline::At(began + REPLAYING + SETTLING);
            let what = Replay { limit: usize::MAX, through: Some(through), deadline, stop };
            Ok(letters.replay(&what, &mut |_| Ok(()))?.replayed)
        }));
        if let Ok(replayed) = timeout(REPLAYING, &mut replaying).await {
            return replayed;
        }
        drop(overdue);
        replaying.await
    }
}

impl Letter {
    fn new(letter: &BorrowedMessage<'_>, waiting: bool) -> Self {
        let Description { source, reason, failed_at, .. } = Description::read(letter);
        let written = letter.timestamp().to_millis().unwrap_or_default().saturating_mul(1000);
        let at = failed_at.parse().ok().or_else(|| Timestamp::from_unix_microseconds(written));
        let value = letter.payload().unwrap_or_default();
        Self {
            offset: letter.offset(),
            at: at.unwrap_or(Timestamp::EPOCH),
            reason: text(reason.as_bytes(), MOST_TEXT),
            source: source.map(|source| Source { topic: text(source.topic.as_bytes(), MOST_TEXT), ..source }),
            key: letter.key().map(|key| text(key, MOST_TEXT)),
            value: text(value, MOST_VALUE),
            value_bytes: value.len(),
            waiting,
        }
    }
}

/// Returns at most `most` bytes as text, whatever they are.
fn text(bytes: &[u8], most: usize) -> String {
    // A character that the limit cuts in two is left out: it would be replaced as if it were invalid.
    let cut = &bytes[..bytes.len().min(most)];
    let whole = match std::str::from_utf8(cut) {
        Err(error) if cut.len() < bytes.len() && error.error_len().is_none() => &cut[..error.valid_up_to()],
        _ => cut,
    };
    let mut text = String::from_utf8_lossy(whole).into_owned();
    // Each invalid byte was replaced by three.
    text.truncate(text.floor_char_boundary(most));
    text
}

/// Runs blocking work on a thread for it, and stops waiting at the deadline; the work may still end later.
async fn blocking<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Error> {
    /// Time that a call may need to notice its own deadline.
    const GRACE: Duration = Duration::from_secs(1);
    let answer = timeout(deadline + GRACE, tokio::task::spawn_blocking(work)).await;
    match answer {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) => Err(match error.downcast::<SeveralPartitions>() {
            Ok(several) => Error::SeveralPartitions(several),
            Err(error) if error.is::<TakenOver>() => Error::ReplayUnderWay,
            Err(error) => Error::Kafka(format!("{error:#}")),
        }),
        Ok(Err(_)) => Err(Error::Kafka("the query panicked".to_owned())),
        Err(_) => Err(Error::Kafka("no answer in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_whatever_its_bytes() {
        assert_eq!(text("aä".as_bytes(), 2), "a");
        assert_eq!(text("aä".as_bytes(), 3), "aä");
        assert_eq!(text(&[b'a', 0xff, b'b'], 10), "a\u{fffd}b");
        assert!(text(&[0xff; 100], 10).len() <= 10);
    }
}
