//! The latency from the 201 at the client to the notification at a reader of committed records.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use orderflow_core::Notification;
use orderflow_testbed::{
    eventually,
    load::{Load, Orders, Plan},
};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    Effort,
    backing::{ALL, Backing, GROUP, NO_S3, PATIENCE, Reach, TOPIC, address},
    plot, post,
    report::Report,
    series::short,
};

const RATES: [u32; 3] = [100, 1000, 5000];
/// The rate of the lines that differ in more than the rate.
const RATE: u32 = 1000;
const CONNECTIONS: u32 = 64;

pub async fn measure(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    report.section(
        "201 to notification",
        "Open loop over 64 connections; POST counts from when an order was due, the way to the notification from its 201 to a reader of \
         committed records on the same machine. Everything at work, receipts and S3's server too, but for the line that \
         says otherwise.",
    );
    report.head(&[
        "orders/s",
        "accepted/s",
        "POST p50",
        "p95",
        "p99",
        "201 to notification p50",
        "p95",
        "p99",
        "due, not sent",
    ]);
    let maximum = post::maximum(backing, effort.length).await?;
    let most = (maximum * 0.8) as u32;
    let mut plotted = Vec::new();
    for (rate, name) in RATES
        .map(|rate| (rate, short(f64::from(rate))))
        .into_iter()
        .chain([(most, format!("{} (80 % of what a closed loop of 64 takes)", short(f64::from(most))))])
    {
        let measured = at(backing, rate, effort.length * 2, Way::Leader, ALL).await?;
        plotted.push(measured.way.map(|time| time.as_secs_f64() * 1e3));
        measured.add_row(name, report);
    }
    let name = short(f64::from(RATE));
    let bystander = at(backing, RATE, effort.length * 2, Way::Bystander, ALL).await?;
    bystander.add_row(format!("{name}, all to a second producer, which leads no relay"), report);
    let without_receipts = at(backing, RATE, effort.length * 2, Way::Leader, NO_S3).await?;
    without_receipts.add_row(format!("{name}, receipts wait"), report);
    let labels: Vec<String> =
        RATES.iter().chain([&most]).map(|rate| format!("{}/s", short(f64::from(*rate)))).collect();
    let of = |position: usize| plotted.iter().map(|times| times[position]).collect::<Vec<f64>>();
    report.plot(
        "latency",
        plot::bars("201 to notification, ms", &labels, &[("p50", of(0)), ("p95", of(1)), ("p99", of(2))]),
    );
    Ok(())
}

/// The producer that takes the orders.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Leader,
    Bystander,
}

struct Measured {
    rate: f64,
    /// The quantiles p50, p95 and p99.
    post: [Duration; 3],
    way: [Duration; 3],
    unsent: u64,
}

impl Measured {
    fn add_row(&self, name: String, report: &mut Report) {
        let milliseconds = |time: &Duration| format!("{} ms", short(time.as_secs_f64() * 1e3));
        let cells = self.post.iter().chain(&self.way).map(milliseconds);
        report.row([name, short(self.rate)].into_iter().chain(cells).chain([self.unsent.to_string()]));
    }
}

async fn at(backing: &Backing, rate: u32, length: Duration, way: Way, reach: Reach) -> Result<Measured> {
    backing.empty().await?;
    let consumer = backing.consumer(GROUP).await?;
    consumer.ready(PATIENCE).await?;
    let producer = backing.producer(reach).await?;
    post::wait_for_relays(&producer).await?;
    let bystander = if way == Way::Bystander { Some(backing.bystander().await?) } else { None };
    let url = bystander.as_ref().unwrap_or(&producer).url()?;
    let counted = async || crate::backing::metric(&consumer.admin_url()?, "orderflow_consumer_events_total").await;
    post::quiet(&counted).await?;
    let reader = Reader::start(backing)?;
    // Not measured: it opens connections and makes plans.
    post::post(&url, CONNECTIONS, rate, Duration::from_secs(1)).await?;
    let orders = Arc::new(Orders::new(1000).noting());
    let plan = Plan { address: address(&url), rate, connections: CONNECTIONS, duration: length };
    let mut load = Load::start(&plan, orders.clone());
    load.ended().await?;
    let tally = load.take();
    let accepted = orders.take_accepted();
    let mut ways = eventually("the notifications of all orders", PATIENCE, async || {
        let seen = reader.seen();
        let of = |(id, at): &(Uuid, Instant)| seen.get(id).map(|seen| seen.saturating_duration_since(*at));
        let ways: Vec<Duration> = accepted.iter().filter_map(of).collect();
        anyhow::ensure!(ways.len() == accepted.len(), "{} of {} were read", ways.len(), accepted.len());
        Ok(ways)
    })
    .await?;
    ways.sort_unstable();
    anyhow::ensure!(!ways.is_empty(), "no order was accepted");
    let way = [0.5, 0.95, 0.99].map(|share| ways[((ways.len() - 1) as f64 * share) as usize]);
    let post = [0.5, 0.95, 0.99].map(|share| tally.latency(share));
    Ok(Measured { rate: tally.succeeded() as f64 / length.as_secs_f64(), post, way, unsent: load.unsent() })
}

/// A reader of notifications on a thread of its own, from the end of the topic on.
struct Reader {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<HashMap<Uuid, Instant>>>,
}

impl Reader {
    fn start(backing: &Backing) -> Result<Self> {
        let topic = format!("{TOPIC}.notifications");
        let mut config = backing.kafka.client();
        config.set("group.id", "bench-reader").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "100");
        config.set("isolation.level", "read_committed");
        let consumer: BaseConsumer = config.create().context("create a reader")?;
        let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).context("fetch the topic's metadata")?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len() as i32);
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            let (_, end) =
                consumer.fetch_watermarks(&topic, partition, PATIENCE).context("find the end of the topic")?;
            assignment.add_partition_offset(&topic, partition, Offset::Offset(end))?;
        }
        consumer.assign(&assignment).context("assign the partitions")?;
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashMap::new())));
        let (stopping, seeing) = (stop.clone(), seen.clone());
        std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) else { continue };
                let at = Instant::now();
                let read = record.payload().and_then(|value| serde_json::from_slice::<Notification>(value).ok());
                if let Some(notification) = read {
                    let mut seen = seeing.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.insert(notification.order_id, at);
                }
            }
        });
        Ok(Self { stop, seen })
    }

    fn seen(&self) -> HashMap<Uuid, Instant> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
