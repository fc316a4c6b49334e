//! The effect of more shards and more producers on the same machine: which part is the next limit.

use std::path::Path;

use anyhow::Result;
use futures_util::future::try_join_all;
use orderflow_testbed::{
    Consumer, Postgres, Producer, Service, eventually, folder,
    load::{Load, Orders, Plan},
    postgres,
    product::Environment,
    provision,
};
use tokio::time::Instant;

use crate::{
    Effort,
    backing::{self, Backing, DATABASE, PATIENCE, address, metric},
    cost::{PARTS, Processes},
    post,
    report::Report,
    series::Series,
};

const CONNECTIONS: u32 = 192;
const SHARDS: [(usize, &str); 3] =
    [(1, "shard1=A-Z"), (2, "shard1=A-M,shard2=N-Z"), (4, "shard1=A-F,shard2=G-M,shard3=N-S,shard4=T-Z")];
const PRODUCERS: [u32; 3] = [1, 2, 3];

#[derive(Default)]
struct Measured {
    accepted: Series,
    kept_up: Series,
    /// The CPU of each part, in µs per order.
    cpu: [Series; 5],
}

pub async fn measure(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    report.section(
        "Shards and producers",
        "A closed loop of 192 connections, shared among the producers, with one consumer and everything at work. CPU in µs per order, of all \
         processes of a kind together.",
    );
    let head = ["shards", "producers", "accepted/s", "kept up/s"];
    report.head(&[head.as_slice(), &PARTS].concat());
    for (count, map) in SHARDS {
        let folder = backing.folder().join(format!("growth-{count}"));
        folder::create(&folder)?;
        let shards = (1..=count).map(|number| {
            let (folder, name) = (&folder, format!("postgres{number}"));
            async move {
                let shard = Postgres::start(folder, &name).await?;
                shard.create_database(DATABASE).await?;
                anyhow::Ok(shard)
            }
        });
        let shards = try_join_all(shards).await?;
        let environment = environment(backing, &shards, map);
        provision(&folder, environment.clone()).await?;
        for producers in PRODUCERS {
            let measured = with(backing, effort, &folder, &shards, &environment, producers).await?;
            let cpu = measured.cpu.iter().map(ToString::to_string);
            let head =
                [count.to_string(), producers.to_string(), measured.accepted.to_string(), measured.kept_up.to_string()];
            report.row(head.into_iter().chain(cpu));
        }
        drop(shards);
        let _ = std::fs::remove_dir_all(folder.join("data"));
    }
    Ok(())
}

fn environment(backing: &Backing, shards: &[Postgres], map: &str) -> Environment {
    let own = shards.len();
    let dsns =
        shards.iter().enumerate().map(|(index, shard)| (format!("PG_SHARD{}_DSN", index + 1), shard.dsn(DATABASE)));
    let names = [
        ("SHARDS", map.to_owned()),
        ("KAFKA_TOPIC", format!("growth-{own}")),
        ("S3_BUCKET", format!("growth-{own}")),
        ("KAFKA_GROUP_ID", format!("growth-{own}")),
    ];
    let shared = backing.services().into_iter();
    shared.chain(names.map(|(name, value)| (name.to_owned(), value))).chain(dsns).collect()
}

async fn with(
    backing: &Backing,
    effort: Effort,
    folder: &Path,
    shards: &[Postgres],
    environment: &Environment,
    producers: u32,
) -> Result<Measured> {
    let mut measured = Measured::default();
    let consumer = Consumer::builder(folder, environment.clone()).instance("consumer").start().await?;
    consumer.ready(PATIENCE).await?;
    let started = (1..=producers)
        .map(|number| Producer::builder(folder, environment.clone()).instance(format!("producer{number}")).start());
    let started: Vec<Producer> = try_join_all(started).await?;
    for producer in &started {
        producer.ready(PATIENCE).await?;
    }
    eventually("a leader for each relay", PATIENCE, async || {
        for shard in 1..=shards.len() {
            let mut led = false;
            for producer in &started {
                led |= producer.leads_relay(shard).await?;
            }
            anyhow::ensure!(led, "the relay of shard {shard} has no leader");
        }
        Ok(())
    })
    .await?;
    let notified = async || metric(&consumer.admin_url()?, "orderflow_consumer_events_total").await;
    let of_producers = started.iter().map(Service::pid).collect();
    let processes = Processes::new(backing, shards, of_producers, vec![consumer.pid()]);
    for _ in 0..effort.rounds {
        backing::empty(shards).await?;
        post::quiet(&notified).await?;
        let (before, notified_before, began) = (processes.used()?, notified().await?, Instant::now());
        let mut loads = Vec::new();
        for producer in &started {
            let (address, connections) = (address(&producer.url()?), CONNECTIONS / producers);
            let plan = Plan { address, rate: 0, connections, duration: effort.length };
            loads.push(Load::start(&plan, Orders::new(1000)));
        }
        let mut orders = 0.0;
        for load in &mut loads {
            load.ended().await?;
            orders += load.take().succeeded() as f64;
        }
        measured.accepted.push(orders / began.elapsed().as_secs_f64());
        eventually("all work to be done", PATIENCE, async || {
            let mut left = orders - (notified().await? - notified_before);
            for shard in shards {
                let mut connection = postgres::connect(&shard.dsn(DATABASE)).await?;
                let jobs: i64 =
                    sqlx::query_scalar("SELECT count(*) FROM receipt_jobs").fetch_one(&mut connection).await?;
                left += jobs as f64;
            }
            anyhow::ensure!(left < 0.5, "{left} notifications and receipts are left");
            Ok(())
        })
        .await?;
        measured.kept_up.push(orders / began.elapsed().as_secs_f64());
        processes.add_since(&before, orders, &mut measured.cpu)?;
    }
    Ok(measured)
}
