//! `orderflow-producer verify`: compares the orders of all shards with their receipts, events and notifications while
//! everything runs, reports, and with `--repair` queues again what is missing.
//!
//! The shards are read first for each slice of time, each in one snapshot, and then S3 and Kafka. By then an order
//! without a receipt job in the snapshot has its object, and one without an outbox row has its event in Kafka, below an
//! end of the log that is read afterwards. So nothing that is still in progress seems missing, and no clock has to be
//! right.

mod finding;
mod kafka_findings;
mod options;
mod progress;
mod receipts;
mod repair;
mod report;
mod slice;
mod topics;

use std::io::Write;

use anyhow::Context;
use orderflow_core::Topics;
use orderflow_service::postgres;

pub use options::Options;

use crate::Settings;
use kafka_findings::KafkaFindings;
use options::Part;
use progress::Progress;
use receipts::Bucket;
use report::Report;
use slice::{Session, Slice};
use topics::Kafka;

/// Runs the command, and writes its report to `out`. Returns true if nothing is wrong, or everything that was is queued
/// again. It can be killed at any time: each of its writes is one statement.
pub async fn run(settings: &Settings, options: &Options, out: &mut impl Write) -> anyhow::Result<bool> {
    settings.check()?;
    let topics = Topics::named(&settings.kafka.kafka_topic);
    let mut shards = sessions(settings).await?;
    if options.repair {
        for shard in &mut shards {
            shard.lock().await?;
        }
    }
    if options.renotify {
        eprintln!("Second notifications are possible: events that Kafka no longer has may have been notified before.");
    }
    let bucket = match options.only {
        Some(Part::Events) => None,
        Some(Part::Receipts) | None => Some(Bucket::open(&settings.s3).await?),
    };
    let kafka = match options.only {
        Some(Part::Receipts) => None,
        Some(Part::Events) | None => Some(Kafka::open(&settings.kafka, &topics, &settings.kafka_group_id).await?),
    };
    let (mut report, mut progress) = (Report::new(settings, options), Progress::default());

    let mut from = options.since();
    loop {
        let to = slice::find_end(&mut shards, from).await?;
        progress.begin(from, to);
        let mut slice = Slice::read(&mut shards, from, to).await?;
        if let Some(bucket) = &bucket {
            bucket.check(&mut slice, &progress).await?;
        }
        let in_kafka = match &kafka {
            Some(kafka) => {
                Some(KafkaFindings::collect(kafka, &mut slice, &mut shards, &settings.shards, &progress).await?)
            }
            None => None,
        };
        report.add(&slice, in_kafka.as_ref());
        if options.repair {
            repair::run(&mut shards, &slice, in_kafka.as_ref(), options, &mut report).await?;
        }
        progress.end(slice.orders.len());
        let Some(next) = to else { break };
        from = next;
    }
    write!(out, "{report}").context("write the report")?;
    Ok(report.is_well())
}

async fn sessions(settings: &Settings) -> anyhow::Result<Vec<Session>> {
    let mut sessions = Vec::new();
    for (shard, dsn) in settings.shards.iter().zip(postgres::shard_dsns(&settings.shards)?) {
        sessions.push(Session::open(settings, shard, &dsn).await?);
    }
    Ok(sessions)
}
