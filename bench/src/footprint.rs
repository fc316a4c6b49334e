//! The resources that the processes need at rest, and the time they take to be ready.

use std::time::Duration;

use anyhow::Result;
use orderflow_testbed::Service;
use tokio::time::{Instant, sleep};

use crate::{
    backing::{ALL, Backing, GROUP, PATIENCE},
    post,
    report::Report,
    series::short,
    usage,
};

/// A time in which timers of seconds fire several times.
const IDLING: Duration = Duration::from_secs(20);

pub async fn measure(backing: &Backing, report: &mut Report) -> Result<()> {
    report.section("At rest", "Started on services that are up, then left alone for 20 s. What is not private is the program itself, as far as it has been read, \
         which all processes of a node share and the kernel can drop.");
    backing.empty().await?;
    let began = Instant::now();
    let producer = backing.producer(ALL).await?;
    let producer_ready = began.elapsed();
    // Kafka creates the topic of the groups' offsets, of 50 partitions, for the first group ever.
    backing.consumer(GROUP).await?.ready(PATIENCE).await?;
    let began = Instant::now();
    // A group of its own, so that it need not wait for a member that was killed before.
    let consumer = backing.consumer("at-rest").await?;
    consumer.ready(PATIENCE).await?;
    let consumer_ready = began.elapsed();
    let counter = async || crate::backing::metric(&consumer.admin_url()?, "orderflow_consumer_events_total").await;
    post::quiet(&counter).await?;
    post::wait_for_relays(&producer).await?;
    let mut rows = Vec::new();
    for (name, pid, ready) in
        [("producer", producer.pid(), producer_ready), ("consumer", consumer.pid(), consumer_ready)]
    {
        rows.push((name, pid, ready, usage::cpu(pid)?));
    }
    sleep(IDLING).await;
    report.head(&["", "start to ready", "memory, MiB", "of it private", "CPU, % of a core"]);
    for (name, pid, ready, before) in rows {
        let share = (usage::cpu(pid)? - before) / IDLING.as_secs_f64() * 100.0;
        let ready = format!("{} ms", short(ready.as_secs_f64() * 1e3));
        let memory = [usage::resident(pid)?, usage::private(pid)?].map(short);
        report.row([name.to_owned(), ready].into_iter().chain(memory).chain([short(share)]));
    }
    Ok(())
}
