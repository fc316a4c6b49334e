//! `send_offsets_to_transaction` on a thread that can be left behind. librdkafka does not look at the timeout while it waits for
//! the group's coordinator, and it waits for ever for one that it has given up meanwhile: a broker that is missing in its
//! metadata, as the only one is when it wakes up from a freeze that was longer than its session
//! (<https://github.com/confluentinc/librdkafka/issues/5456>, <https://github.com/confluentinc/librdkafka/issues/5511>).

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

/// Longest wait inside of one [`OffsetSender::answer`].
const LOOK: Duration = Duration::from_millis(100);

type Offsets = (TopicPartitionList, Arc<ConsumerGroupMetadata>);

/// Dropped while a call is stuck, it leaves the thread behind, with the producer, until that comes back. Harmless: whoever
/// commits is gone, and the next producer of the same transactional id fences this one.
pub struct OffsetSender {
    /// `None` only while it is dropped.
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

    /// Begins a call. Only after the one before was answered.
    pub fn send(&self, offsets: TopicPartitionList, group: Arc<ConsumerGroupMetadata>) {
        // If nobody takes it, there is no answer either.
        let _ = self.requests.as_ref().map(|requests| requests.send((offsets, group)));
        self.under_way.set(true);
    }

    /// `None`: not yet.
    pub fn answer(&self) -> Option<KafkaResult<()>> {
        let answer = match self.answers.recv_timeout(LOOK) {
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
            tracing::warn!("a call of librdkafka does not come back: it is left behind, with its client");
        } else if let Some(thread) = self.thread.take() {
            // The thread ends the producer; whoever comes next finds it gone.
            let _ = thread.join();
        }
    }
}
