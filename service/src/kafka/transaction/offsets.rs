//! `send_offsets_to_transaction` on a thread that can be left behind. librdkafka does not look at the timeout while it waits for
//! the group's coordinator, and it waits for ever for one that it has given up meanwhile: a broker that is missing in its
//! metadata, as the only one is when it wakes up from a freeze that was longer than its session
//! (<https://github.com/confluentinc/librdkafka/issues/5456>, <https://github.com/confluentinc/librdkafka/issues/5511>).

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use rdkafka::{
    TopicPartitionList,
    consumer::ConsumerGroupMetadata,
    error::KafkaResult,
    producer::{BaseProducer, Producer},
};

use super::{CALL_TIMEOUT, Deliveries};

/// Longest wait inside of one [`OffsetSender::answer`].
const LOOK: Duration = Duration::from_millis(100);

/// Ends its thread when it is dropped; a call that is stuck keeps the thread and the producer until it comes back. Harmless: the
/// next producer of the same transactional id has fenced this one by then.
pub struct OffsetSender {
    requests: SyncSender<(TopicPartitionList, Arc<ConsumerGroupMetadata>)>,
    answers: Receiver<KafkaResult<()>>,
}

impl OffsetSender {
    pub fn start(producer: Arc<BaseProducer<Deliveries>>) -> Self {
        let (requests, to_do) = sync_channel::<(TopicPartitionList, Arc<ConsumerGroupMetadata>)>(1);
        let (done, answers) = sync_channel(1);
        thread::spawn(move || {
            for (offsets, group) in to_do {
                let answer = producer.send_offsets_to_transaction(&offsets, &group, CALL_TIMEOUT);
                if done.send(answer).is_err() {
                    break;
                }
            }
        });
        Self { requests, answers }
    }

    /// Begins a call. Only after the one before was answered.
    pub fn send(&self, offsets: TopicPartitionList, group: Arc<ConsumerGroupMetadata>) {
        self.requests.send((offsets, group)).expect("the thread ends after this");
    }

    /// `None`: not yet.
    pub fn answer(&self) -> Option<KafkaResult<()>> {
        self.answers.recv_timeout(LOOK).ok()
    }
}
