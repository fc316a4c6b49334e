//! The producer: REST API, shards, relay, receipts, feed and dashboard of OrderFlow.
//!
//! `run` is the table of contents: it makes the parts, starts them, and stops them in the order in which an order
//! passes.

mod backlog;
mod cli;
mod dead_letters;
mod feed;
mod http;
mod kafka_query;
mod lag;
pub mod metrics;
mod probe;
mod purge;
mod quota;
mod receipts;
mod relay;
mod settings;
mod shard;
mod stats;
mod trail;
pub mod verify;

use std::{future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use futures_util::future::OptionFuture;
use orderflow_core::Topics;
use orderflow_dead_letters::DeadLetters;
use orderflow_service::{
    Dependencies, Need, Supervisor, admin, postgres, prometheus::registry::Registry, s3, shutdown::CancellationToken,
};
use tokio::sync::mpsc;

pub use cli::{Cli, Command};
pub use http::{PROBLEM_KINDS, ProblemKind, openapi, public_openapi};
pub use settings::Settings;

use crate::{
    feed::{Feed, Tail},
    http::{Exposure, server::Connections},
    metrics::Metrics,
    quota::Quota,
    receipts::Receipts,
    relay::Relay,
    shard::{Doorbells, Moves, Router, Shard, Shards, maps::Maps, meta::Expected},
    stats::{GroupProgress, Sources, Stats},
    trail::Trails,
};

/// Longest wait for requests in flight after the signal; what is left of the deadline is for the writers and the relay.
const DRAIN: Duration = Duration::from_secs(8);

/// Connections of the internal port that are served at once.
const INTERNAL_CONNECTIONS: usize = 128;

/// Longest wait for the writers, and then for the relays and receipt workers, to finish their work in progress.
const SETTLE: Duration = Duration::from_secs(4);

/// Runs the producer until `stop` is cancelled and everything in flight has ended, or until a task fails in spite of
/// its restarts.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    settings.check()?;
    let topics = Topics::named(&settings.kafka.kafka_topic);
    let dsns = postgres::shard_dsns(&settings.shards)?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let dependencies = Dependencies::new(stop.clone());
    let kafka = dependencies.register("kafka", Need::Eventually);
    let bucket = dependencies.register("s3", Need::Eventually);
    let client = s3::client(&settings.s3, s3::http()).await;

    // Requests end first, then the writers, then the tasks that work on stored orders, and last the admin port.
    let supervisor = Supervisor::new(&mut registry, stop.clone());
    let (observing, writing) = (supervisor.stage(), supervisor.stage());
    let (working, administering) = (supervisor.stage(), supervisor.stage());

    let maps = Maps::new(settings.shards.clone());
    let (refused, moved) = mpsc::unbounded_channel();
    let moves = Moves { maps: maps.clone(), refused };
    let mut shards = Vec::new();
    for (shard, dsn) in settings.shards.iter().zip(dsns) {
        let variable = postgres::dsn_variable(shard);
        let options = postgres::options(&variable, &dsn.url, dsn.ca.as_ref(), "orderflow-producer")?;
        let doorbells = Doorbells::default();
        let dependency = dependencies.register(&shard.name, Need::AnyOf);
        let (handle, writers) =
            Shard::new(shard.clone(), &options, dependency, &doorbells, &metrics, &settings, &moves);
        let named = |task: &str| format!("{task} {}", shard.name);
        for (number, writer) in writers.into_iter().enumerate() {
            writing.run(named(&format!("writer {}", number + 1)), move |stop| done(writer.clone().run(stop)));
        }
        let relay = Relay {
            shard: shard.clone(),
            topics: topics.clone(),
            options,
            expected: Expected::new(shard, &settings.shards),
            kafka: settings.kafka.clone(),
            doorbell: doorbells.relay,
            dependency: kafka.clone(),
            metrics: metrics.shard(&shard.name),
        };
        working.run(named("relay"), move |stop| done(relay.clone().run(stop)));
        let receipts = Receipts {
            shard: shard.clone(),
            maps: maps.clone(),
            pool: handle.pool().clone(),
            client: client.clone(),
            bucket: settings.s3.s3_bucket.clone(),
            lease: settings.receipt_lease(),
            doorbell: doorbells.receipts,
            dependency: bucket.clone(),
            metrics: metrics.shard(&shard.name),
        };
        working.run(named("receipts"), move |stop| done(receipts.clone().run(stop)));
        let (pool, name) = (handle.pool().clone(), shard.name.clone());
        working.run(named("purge"), move |stop| done(purge::run(pool.clone(), name.clone(), stop)));
        let (measured, backlog) = (handle.clone(), metrics.backlog(&shard.name));
        observing.run(named("backlog"), move |stop| done(backlog::watch(measured.clone(), backlog.clone(), stop)));
        shards.push(handle);
    }
    let (kafka_settings, probed) = (settings.kafka.clone(), topics.clone());
    observing.run("probe kafka", move |stop| {
        done(probe::topics(kafka_settings.clone(), probed.clone(), kafka.clone(), stop))
    });
    let (s3, name) = (client.clone(), settings.s3.s3_bucket.clone());
    observing.run("probe s3", move |stop| done(probe::bucket(s3.clone(), name.clone(), bucket.clone(), stop)));

    let shards = Shards::new(shards);
    drop(moves);
    let router = Router::new(shards.clone(), maps.clone(), moved);
    observing.run("router", move |stop| done(router.clone().run(stop)));

    let feed = Feed::new(settings.shards.clone());
    let (tailed, kafka_settings, notifications) = (feed.clone(), settings.kafka.clone(), topics.notifications.clone());
    observing.run_blocking("feed", move |stop| {
        Tail::new(tailed.clone(), kafka_settings.clone(), notifications.clone()).run(stop);
        Ok(())
    });

    let bucket: Arc<str> = settings.s3.s3_bucket.as_str().into();
    let letters = DeadLetters::new(&settings.kafka, &settings.kafka_group_id);
    let share = settings.address_share;
    let dead_letters = dead_letters::Handle::new(letters, settings.dead_letter_replay, share, stop.clone());
    let sources = Sources {
        shards: shards.clone(),
        feed: feed.clone(),
        s3: client.clone(),
        bucket: bucket.clone(),
        consumer: GroupProgress::new(&settings.kafka, &settings.kafka_group_id, &topics),
        dead_letters: dead_letters.clone(),
    };
    let stats = Stats::new(sources);
    let group = Arc::new(GroupProgress::new(&settings.kafka, &settings.kafka_group_id, &topics));
    let measured = metrics.clone();
    observing.run("lag", move |stop| {
        let (group, metrics) = (group.clone(), measured.clone());
        async move {
            lag::watch(&group, &metrics, &stop).await;
            Ok(())
        }
    });
    let trails = Trails::new(feed.clone(), &settings.kafka, topics.clone(), share);
    let app = Arc::new(http::App {
        maps,
        shards,
        s3: client,
        bucket,
        dead_letters,
        feed,
        feeds: Quota::new(settings.max_feeds, share),
        memory: http::Memory::new(settings.body_memory_mb, share),
        stats,
        trails: Arc::new(trails),
        config: http::Config::new(&settings),
        parameters: http::KnownNames::from_document(&http::openapi()),
        deadline: http::deadline(&settings),
        metrics,
        stop: stop.clone(),
    });
    let admin_address = SocketAddr::new(settings.admin.host, settings.admin.admin_port);
    let admin = admin::bind("admin", admin_address).await?;
    let listener = admin::bind("http", SocketAddr::new(settings.admin.host, settings.port)).await?;
    let internal = match settings.internal_port {
        Some(port) => Some(admin::bind("internal", SocketAddr::new(settings.admin.host, port)).await?),
        None => None,
    };
    admin::serve(&administering, &supervisor, admin, dependencies, registry, "producer");

    let exposure = if internal.is_some() { Exposure::Public } else { Exposure::Internal };
    // Separate bounds: clients that hold all connections must not keep operators out.
    let connections = |places| Connections {
        places: Quota::new(places, share),
        open: app.metrics.connections.clone(),
        refused: app.metrics.connections_refused.clone(),
    };
    let (for_clients, for_operators) = (connections(settings.max_connections), connections(INTERNAL_CONNECTIONS));
    let router = http::router(app.clone(), &settings, exposure)?;
    let serving_clients = http::server::serve(listener, router, for_clients, stop.clone(), DRAIN);
    let serving_operators = match internal {
        Some(listener) => {
            let router = http::router(app.clone(), &settings, Exposure::Internal)?;
            Some(http::server::serve(listener, router, for_operators, stop.clone(), DRAIN))
        }
        None => None,
    };
    drop(app);
    let mut serving = pin!(async { tokio::join!(serving_clients, OptionFuture::from(serving_operators)) });
    let failure = tokio::select! {
        _ = &mut serving => None,
        failure = supervisor.failed() => {
            // The process still ends in order: the other tasks and the requests in flight have not failed.
            tracing::error!(error = format!("{failure:#}"), "stopping");
            stop.cancel();
            serving.await;
            Some(failure)
        }
    };

    observing.stop();
    // The router held the handles of the queues. Unless requests are still in flight, the writers end once they have
    // stored all accepted orders.
    if !writing.ended(SETTLE).await {
        writing.stop();
    }
    working.stop();
    // Work that a relay or a worker cannot finish in time (Kafka or S3 is frozen) stays in the shard, for the next
    // process.
    if !working.ended(SETTLE).await {
        tracing::info!("Kafka or S3 did not answer: events and receipts wait in their shards");
    }
    administering.stop();
    administering.ended(SETTLE).await;
    tracing::info!("stopped");
    failure.map_or(Ok(()), Err)
}

/// Adapts a task without a result to the supervisor.
async fn done(task: impl Future<Output = ()>) -> anyhow::Result<()> {
    task.await;
    Ok(())
}
