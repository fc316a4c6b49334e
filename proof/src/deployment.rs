//! The deployment under test: two shards, Kafka, S3, two producers and two consumers. Producers and consumers are on
//! one of two sides. Each side reaches the services through proxies of its own, so that its network can fail alone.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use orderflow_testbed::{
    Consumer, Kafka, ObjectStore, Postgres, Producer, Proxy, Service, SmallDisk, Store, folder, http,
    kafka::Listener,
    port, postgres,
    product::{Builder, Environment},
    provision,
};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};

use crate::{client, observation::Sites};

const DATABASE: &str = "orders";
const TOPIC: &str = "orders";
const GROUP: &str = "consumers";
const BUCKET: &str = "receipts";

/// Size in MiB of the disk that holds shard 2: its write-ahead log grows to 1 GiB.
const DISK: u64 = 3 * 1024;

/// Two sides, with a producer and a consumer each.
pub const SIDES: [&str; 2] = ["a", "b"];

/// The longest wait for a process to start.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Deployment {
    folder: PathBuf,
    postgres: [Postgres; 2],
    kafka: Kafka,
    s3: ObjectStore,
    sides: Vec<Side>,
    locks: HashMap<Part, Mutex<()>>,
    /// The disk of shard 2, where one can be mounted. The last field, because it must outlive all that uses it.
    pub disk: Option<SmallDisk>,
}

/// The processes and proxies of one side.
#[derive(Debug)]
pub struct Side {
    pub producer: Producer,
    pub consumer: Consumer,
    links: Links,
    producer_port: u16,
}

/// The proxies of one side.
#[derive(Debug)]
struct Links {
    shards: [Proxy; 2],
    kafka: Proxy,
    s3: Proxy,
}

/// A part that a fault strikes, one fault at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    Producer(usize),
    Consumer(usize),
    /// The number of the shard, from 1.
    Shard(usize),
    Kafka,
    S3,
    Link(usize, Peer),
}

/// The services that the processes of a side connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// The number of the shard, from 1.
    Shard(usize),
    Kafka,
    S3,
}

pub const PEERS: [Peer; 4] = [Peer::Shard(1), Peer::Shard(2), Peer::Kafka, Peer::S3];

impl Deployment {
    /// Starts everything below `folder` and waits until orders are accepted.
    pub async fn start(folder: &Path, store: Store) -> Result<Self> {
        let disk = SmallDisk::mount(&folder::data(folder, "disk")?.join("data"), DISK).await?;
        let second = if disk.is_some() { folder.join("data/disk") } else { folder.to_owned() };
        let listeners = [port::free()?, port::free()?];
        let ways = try_join_all(listeners.map(Proxy::start)).await?;
        let further: Vec<_> =
            listeners.iter().zip(&ways).map(|(&port, way)| Listener { port, advertised: way.port() }).collect();
        let (postgres1, postgres2, kafka, s3) = tokio::try_join!(
            Postgres::start(folder, "postgres1"),
            Postgres::start(&second, "postgres2"),
            Kafka::start_behind(folder, "kafka", &further),
            ObjectStore::start(folder, "s3", store),
        )?;
        let postgres = [postgres1, postgres2];
        for shard in &postgres {
            shard.create_database(DATABASE).await?;
        }
        let environment = environment([postgres[0].port(), postgres[1].port()], &kafka.bootstrap(), s3.port(), &s3);
        provision(folder, environment).await?;

        let mut links = Vec::new();
        for kafka in ways {
            let shards = [Proxy::start(postgres[0].port()).await?, Proxy::start(postgres[1].port()).await?];
            links.push(Links { shards, kafka, s3: Proxy::start(s3.port()).await? });
        }
        let sides = links.into_iter().zip(SIDES).map(|(links, name)| Side::start(folder, name, links, &s3));
        let sides = try_join_all(sides).await?;
        let parts = (0..SIDES.len())
            .flat_map(|side| [Part::Producer(side), Part::Consumer(side)])
            .chain((0..SIDES.len()).flat_map(|side| PEERS.map(|peer| Part::Link(side, peer))))
            .chain([Part::Shard(1), Part::Shard(2), Part::Kafka, Part::S3]);
        let locks = parts.map(|part| (part, Mutex::new(()))).collect();
        let deployment = Self { folder: folder.to_owned(), postgres, kafka, s3, sides, locks, disk };
        for side in &deployment.sides {
            side.producer.ready(PATIENCE).await?;
            side.consumer.ready(PATIENCE).await?;
        }
        Ok(deployment)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn side(&self, side: usize) -> &Side {
        &self.sides[side]
    }

    /// Waits until no other fault strikes `part`, and reserves it.
    pub async fn lock(&self, part: Part) -> MutexGuard<'_, ()> {
        self.locks[&part].lock().await
    }

    pub fn service(&self, part: Part) -> &dyn Service {
        match part {
            Part::Producer(side) => &self.sides[side].producer,
            Part::Consumer(side) => &self.sides[side].consumer,
            Part::Shard(shard) => &self.postgres[shard - 1],
            Part::Kafka => &self.kafka,
            Part::S3 | Part::Link(..) => &self.s3,
        }
    }

    pub fn link(&self, side: usize, peer: Peer) -> &Proxy {
        let links = &self.sides[side].links;
        match peer {
            Peer::Shard(shard) => &links.shards[shard - 1],
            Peer::Kafka => &links.kafka,
            Peer::S3 => &links.s3,
        }
    }

    /// Returns the side whose producer leads the relay of a shard, if one reports that it does.
    pub async fn relay_leader(&self, shard: usize) -> Option<usize> {
        for (number, side) in self.sides.iter().enumerate() {
            // A frozen or dead producer reports nothing.
            if let Ok(Ok(true)) = timeout(Duration::from_secs(1), side.producer.leads_relay(shard)).await {
                return Some(number);
            }
        }
        None
    }

    /// Returns every process with its part.
    pub fn processes(&self) -> Vec<(Part, &dyn Service)> {
        let ours = (0..SIDES.len()).flat_map(|side| [Part::Producer(side), Part::Consumer(side)]);
        let parts = ours.chain([Part::Shard(1), Part::Shard(2), Part::Kafka, Part::S3]);
        parts.map(|part| (part, self.service(part))).collect()
    }

    pub fn producers(&self) -> Vec<client::Producer> {
        let producer = |(side, name): (&Side, &str)| client::Producer {
            name: name.to_owned(),
            url: format!("http://127.0.0.1:{}", side.producer_port),
        };
        self.sides.iter().zip(SIDES).map(producer).collect()
    }

    /// Returns where the results can be read, without a proxy between.
    pub fn sites(&self) -> Sites {
        Sites {
            dsns: self.postgres.iter().map(|shard| shard.dsn(DATABASE)).collect(),
            bootstrap: self.kafka.bootstrap(),
            topic: TOPIC.to_owned(),
            s3: self.s3.s3(),
            bucket: BUCKET.to_owned(),
        }
    }
}

impl Side {
    async fn start(folder: &Path, name: &str, links: Links, s3: &ObjectStore) -> Result<Self> {
        let shards = [links.shards[0].port(), links.shards[1].port()];
        let kafka = format!("127.0.0.1:{}", links.kafka.port());
        let environment = environment(shards, &kafka, links.s3.port(), s3);
        let of_kafka = environment.iter().filter(|(name, _)| name.starts_with("KAFKA_")).cloned().collect();
        // A producer that was started again keeps its port.
        let producer_port = port::free()?;
        let producer = with_admin(Producer::builder(folder, environment), format!("producer-{name}"))?
            .env("PORT", producer_port.to_string())
            // Short leases, so that a run does not wait a minute for what a killed worker had claimed.
            .env("S3_TIMEOUT_MS", "1000")
            .env("RECEIPT_LEASE_MS", "10000");
        let consumer = with_admin(Consumer::builder(folder, of_kafka), format!("consumer-{name}"))?;
        let (producer, consumer) = tokio::try_join!(producer.start(), consumer.start())?;
        Ok(Self { producer, consumer, links, producer_port })
    }
}

fn with_admin<P: Service>(builder: Builder<P>, name: String) -> Result<Builder<P>> {
    Ok(builder.instance(name).env("ADMIN_PORT", port::free()?.to_string()))
}

/// Returns the variables of a process that reaches the services at these ports of loopback.
fn environment(shards: [u16; 2], kafka: &str, s3_port: u16, s3: &ObjectStore) -> Environment {
    let dsn = |port| format!("postgres://{}:{}@127.0.0.1:{port}/{DATABASE}", postgres::USER, postgres::PASSWORD);
    [
        ("KAFKA_BROKERS", kafka.to_owned()),
        ("KAFKA_TOPIC", TOPIC.to_owned()),
        ("KAFKA_GROUP_ID", GROUP.to_owned()),
        ("SHARDS", "shard1=A-M,shard2=N-Z".to_owned()),
        ("PG_SHARD1_DSN", dsn(shards[0])),
        ("PG_SHARD2_DSN", dsn(shards[1])),
        ("S3_ENDPOINT", format!("http://127.0.0.1:{s3_port}")),
        ("S3_BUCKET", BUCKET.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", s3.access_key_id().to_owned()),
        ("AWS_SECRET_ACCESS_KEY", s3.secret_access_key().to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Sets the actions of a named failpoint from now on; see the crate `fail`.
pub async fn set_failpoint(admin_url: &str, name: &str, actions: &str) -> Result<()> {
    let request = http::client().put(format!("{admin_url}/failpoints/{name}")).body(actions.to_owned());
    let answer = request.send().await.with_context(|| format!("set {name}"))?;
    answer.error_for_status().with_context(|| format!("set {name}: is this a build with failpoints?")).map(drop)
}
