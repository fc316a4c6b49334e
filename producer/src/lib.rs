//! The producer: REST API, shards, relay, receipts, feed and dashboard of OrderFlow.
//!
//! `run` is the table of contents: it makes the parts, starts them, and stops them in the order in which an order passes.

mod backlog;
mod dead_letters;
mod feed;
mod http;
mod kafka_reader;
mod metrics;
mod probe;
mod purge;
mod receipts;
mod relay;
mod settings;
mod shard;
mod stats;
mod trail;
pub mod verify;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use orderflow_core::Topics;
use orderflow_dead_letters::DeadLetters;
use orderflow_service::{
    Dependencies, Need, admin, postgres, prometheus::registry::Registry, s3, shutdown::CancellationToken,
};
use tokio_util::task::TaskTracker;

pub use http::openapi;
pub use settings::{Command, Settings};

use crate::{
    dead_letters::Office,
    feed::{Feed, Tail},
    metrics::Metrics,
    receipts::Receipts,
    relay::Relay,
    shard::{Doorbells, Shard, meta::Expected},
    stats::{GroupProgress, Sources, Stats},
    trail::Trails,
};

/// Longest wait for requests in flight after the signal; what is left of the deadline is for the writers and the relay.
const DRAIN: Duration = Duration::from_secs(8);

/// Longest wait for the writers, and then for the relays and receipt workers, to end what they have in hand.
const SETTLE: Duration = Duration::from_secs(4);

/// Runs the producer until `stop` is cancelled and everything in flight has ended.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    settings.check()?;
    let topics = Topics::named(&settings.kafka.kafka_topic);
    let dsns = postgres::shard_dsns(&settings.shards)?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let dependencies = Dependencies::default();
    let kafka = dependencies.register("kafka", Need::Eventually);
    let bucket = dependencies.register("s3", Need::Eventually);
    let client = s3::client(&settings.s3, s3::http()).await;

    // Each stage has its own token: requests end first, then the writers, then what works on what they stored.
    let (stop_writers, stop_workers) = (CancellationToken::new(), CancellationToken::new());
    let (writing, working) = (TaskTracker::new(), TaskTracker::new());

    let mut shards = Vec::new();
    for (shard, dsn) in settings.shards.iter().zip(dsns) {
        let variable = postgres::dsn_variable(shard);
        let options = postgres::options(&variable, &dsn.url, dsn.ca.as_ref(), "orderflow-producer")?;
        let doorbells = Doorbells::default();
        let dependency = dependencies.register(&shard.name, Need::AnyOf);
        let (handle, writers) =
            Shard::new(shard.clone(), &settings.shards, &options, dependency, &doorbells, &metrics, &settings);
        for writer in writers {
            writing.spawn(writer.run(stop_writers.clone()));
        }
        let relay = Relay {
            shard: shard.clone(),
            topics: topics.clone(),
            options,
            expected: Expected::of(shard, &settings.shards),
            kafka: settings.kafka.clone(),
            doorbell: doorbells.relay,
            dependency: kafka.clone(),
            metrics: metrics.shard(&shard.name),
        };
        working.spawn(relay.run(stop_workers.clone()));
        let receipts = Receipts {
            shard: shard.clone(),
            pool: handle.pool().clone(),
            client: client.clone(),
            bucket: settings.s3.s3_bucket.clone(),
            lease: settings.receipt_lease(),
            doorbell: doorbells.receipts,
            dependency: bucket.clone(),
            metrics: metrics.shard(&shard.name),
        };
        working.spawn(receipts.run(stop_workers.clone()));
        working.spawn(purge::run(handle.pool().clone(), shard.name.clone(), stop_workers.clone()));
        working.spawn(backlog::watch(handle.clone(), metrics.backlog(&shard.name), stop_workers.clone()));
        shards.push(handle);
    }
    working.spawn(probe::topics(settings.kafka.clone(), topics.clone(), kafka, stop_workers.clone()));
    working.spawn(probe::bucket(client.clone(), settings.s3.s3_bucket.clone(), bucket, stop_workers.clone()));

    let feed = Feed::new(settings.shards.clone());
    let tail = Tail::new(feed.clone(), settings.kafka.clone(), topics.notifications.clone());
    let tail = {
        let stop = stop_workers.clone();
        move || tail.run(&stop)
    };
    std::thread::Builder::new().name("feed".to_owned()).spawn(tail).context("start the feed's thread")?;

    let shards: Arc<[Shard]> = shards.into();
    let bucket: Arc<str> = settings.s3.s3_bucket.as_str().into();
    let letters = DeadLetters::of(&settings.kafka, &settings.kafka_group_id);
    let office = Office::new(letters, settings.dead_letter_replay, stop.clone());
    let sources = Sources {
        shards: shards.clone(),
        feed: feed.clone(),
        s3: client.clone(),
        bucket: bucket.clone(),
        consumer: GroupProgress::new(&settings.kafka, &settings.kafka_group_id, &topics),
        dead_letters: office.clone(),
    };
    let trails = Trails::new(feed.clone(), &settings.kafka, topics.clone());
    let app = http::App {
        map: settings.shards.clone(),
        shards,
        s3: client,
        bucket,
        dead_letters: office,
        feed,
        feeds: Arc::new(tokio::sync::Semaphore::new(settings.max_feeds)),
        stats: Stats::new(sources),
        trails: Arc::new(trails),
        config: http::Config::of(&settings),
        metrics,
        stop: stop.clone(),
    };
    let admin_address = SocketAddr::new(settings.admin.host, settings.admin.admin_port);
    let admin = admin::bind("admin", admin_address).await?;
    let listener = admin::bind("http", SocketAddr::new(settings.admin.host, settings.port)).await?;
    let stop_admin = CancellationToken::new();
    let admin = tokio::spawn(admin::serve(admin, dependencies.clone(), registry, stop_admin.clone()));

    let unready = tokio::spawn({
        let (stop, dependencies) = (stop.clone(), dependencies.clone());
        async move {
            stop.cancelled().await;
            dependencies.stop();
        }
    });
    let router = http::router(app, &settings)?;
    http::server::serve(listener, router, settings.max_connections, stop, DRAIN).await;
    unready.await.context("become unready")?;

    // Unless requests were still under way the handles of the queues are gone with the router, and the writers end when they have stored
    // what was accepted.
    writing.close();
    if tokio::time::timeout(SETTLE, writing.wait()).await.is_err() {
        stop_writers.cancel();
    }
    stop_workers.cancel();
    working.close();
    // What a relay or a worker cannot end in time (Kafka or S3 is frozen) stays in the shard, for the next process.
    if tokio::time::timeout(SETTLE, working.wait()).await.is_err() {
        tracing::info!("Kafka or S3 did not answer: events and receipts wait in their shards");
    }
    stop_admin.cancel();
    admin.await.context("end the admin port")??;
    tracing::info!("stopped");
    Ok(())
}
