//! The feed: tails the notifications of all users (read_committed, all partitions, no group) into a bounded ring, from
//! which every open stream reads.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use orderflow_core::Topics;
use orderflow_service::{
    Backoff,
    kafka::{self, Quiet},
    shutdown::CancellationToken,
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
};
use tokio::sync::broadcast;

/// Notifications that a slow stream may be behind before it is told that it missed some.
const RING: usize = 1024;

/// Latest notifications that a new stream begins with.
const RECENT: usize = 20;

/// How often the topic is asked whether it has grown by a partition or was made anew.
const REFRESH: Duration = Duration::from_secs(30);

/// Cheap to clone; clones share.
#[derive(Clone)]
pub struct Feed {
    live: broadcast::Sender<Arc<str>>,
    recent: Arc<Mutex<VecDeque<Arc<str>>>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { live: broadcast::channel(RING).0, recent: Arc::default() }
    }
}

impl Feed {
    /// The latest notifications (JSON), and the ones from now on.
    pub fn subscribe(&self) -> (Vec<Arc<str>>, broadcast::Receiver<Arc<str>>) {
        // Under the lock, so that none is in both or in neither.
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        (recent.iter().cloned().collect(), self.live.subscribe())
    }

    fn push(&self, notification: &str) {
        let notification: Arc<str> = notification.into();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(notification.clone());
        // Nobody listening is fine.
        let _ = self.live.send(notification);
    }

    /// Reads until `stop`, on the calling thread, which it blocks.
    pub fn run(&self, settings: &kafka::Settings, topics: &Topics, stop: &CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
        while !stop.is_cancelled() {
            if let Err(error) = self.tail(settings, topics, stop, &mut backoff) {
                tracing::debug!(error = format!("{error:#}"), "the feed starts anew");
                let until = Instant::now() + backoff.next_delay();
                while Instant::now() < until && !stop.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    }

    fn tail(
        &self,
        settings: &kafka::Settings,
        topics: &Topics,
        stop: &CancellationToken,
        backoff: &mut Backoff,
    ) -> anyhow::Result<()> {
        let topic = topics.notifications.as_str();
        let mut config = settings.consumer(&format!("{topic}.feed"));
        // A gap in the feed is shown by the page's own look at the orders; what matters here is to go on.
        config.set("auto.offset.reset", "latest").set("topic.metadata.refresh.interval.ms", "30000");
        let consumer = BaseConsumer::from_config_and_context(&config, Quiet::default()).context("make a consumer")?;
        let partitions = partitions_of(&consumer, topic)?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::OffsetTail(RECENT as i64))?;
        }
        consumer.assign(&assignment).context("assign the notifications' partitions")?;
        let mut refresh = Instant::now() + REFRESH;
        while !stop.is_cancelled() {
            match consumer.poll(Duration::from_millis(250)) {
                None => {}
                Some(Ok(message)) => {
                    backoff.reset();
                    if let Some(Ok(notification)) = message.payload_view::<str>() {
                        self.push(notification);
                    }
                }
                Some(Err(error)) => return Err(error).context("read the notifications"),
            }
            if Instant::now() >= refresh {
                ensure!(partitions_of(&consumer, topic)? == partitions, "{topic} has another number of partitions now");
                refresh = Instant::now() + REFRESH;
            }
        }
        Ok(())
    }
}

fn partitions_of(consumer: &BaseConsumer<Quiet>, topic: &str) -> anyhow::Result<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)).context("read the topic's metadata")?;
    match metadata.topics().first() {
        Some(found) if found.error().is_none() && !found.partitions().is_empty() => Ok(found.partitions().len() as i32),
        _ => bail!("the topic {topic} is not there"),
    }
}
