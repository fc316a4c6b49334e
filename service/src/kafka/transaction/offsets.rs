//! Calls `send_offsets_to_transaction` on a thread that can be abandoned. librdkafka ignores the timeout while it waits
//! for the group's coordinator, and waits forever for one that is no longer in its metadata. This happens with an only
//! broker that resumes after a freeze longer than its session
//! (<https://github.com/confluentinc/librdkafka/issues/5456>,
//! <https://github.com/confluentinc/librdkafka/issues/5511>).

use std::{
    cell::Cell,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rdkafka::{
    TopicPartitionList,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, KafkaResult},
    producer::{BaseProducer, Producer},
};

use super::{CALL_TIMEOUT, Deliveries};

/// The longest wait inside of one [`OffsetSender::answer`].
const POLL: Duration = Duration::from_millis(100);

type Offsets = (TopicPartitionList, Arc<ConsumerGroupMetadata>);

/// A thread that sends offsets to the transaction. Dropping it during a stuck call abandons the thread and its producer
/// until the call returns. This is harmless: nothing commits with this producer any more, and the next one with the
/// same transactional id fences it.
pub struct OffsetSender {
    /// The channel to the thread; `None` only while it is dropped.
    requests: Option<SyncSender<Offsets>>,
    answers: Receiver<KafkaResult<()>>,
    thread: Option<JoinHandle<()>>,
    under_way: Cell<bool>,
}

impl OffsetSender {
    pub fn start(producer: Arc<BaseProducer<Deliveries>>) -> io::Result<Self> {
        let (requests, to_do) = sync_channel::<Offsets>(1);
        let (done, answers) = sync_channel(1);
        let work = move || {
            for (offsets, group) in to_do {
                let answer = producer.send_offsets_to_transaction(&offsets, &group, CALL_TIMEOUT);
                if done.send(answer).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("offsets".to_owned()).spawn(work)?;
        Ok(Self { requests: Some(requests), answers, thread: Some(thread), under_way: Cell::new(false) })
    }

    /// Begins a call. The previous call must have been answered.
    pub fn send(&self, offsets: TopicPartitionList, group: Arc<ConsumerGroupMetadata>) {
        // If the thread has ended, `answer` returns an error.
        let _ = self.requests.as_ref().map(|requests| requests.send((offsets, group)));
        self.under_way.set(true);
    }

    /// Returns the result of the call, or `None` if it has not returned yet.
    pub fn answer(&self) -> Option<KafkaResult<()>> {
        let answer = match self.answers.recv_timeout(POLL) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => Err(KafkaError::Canceled),
        };
        self.under_way.set(false);
        Some(answer)
    }
}

impl Drop for OffsetSender {
    fn drop(&mut self) {
        self.requests = None;
        if self.under_way.get() {
            tracing::warn!("a call of librdkafka does not return, abandoning its thread and its client");
        } else if let Some(thread) = self.thread.take() {
            // Joined, because the thread drops the producer, which must be gone before the next one is created.
            let _ = thread.join();
        }
    }
}
