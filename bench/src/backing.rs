//! The services to measure on: two shards, Kafka, an S3 that keeps objects on disk, and the product's processes on
//! them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use orderflow_testbed::{
    Consumer, Kafka, Postgres, Producer, Versitygw, eventually, folder, http, postgres, product::Environment,
    provision, versitygw,
};
use sqlx::{AssertSqlSafe, PgConnection};

pub const DATABASE: &str = "orders";
/// Empties the tables and queues of a shard.
const TRUNCATE: &str = "TRUNCATE orders, idempotency_keys, outbox, receipt_jobs";
pub const TOPIC: &str = "orders";
const BUCKET: &str = "receipts";
/// The consumer group of all parts that do not begin at the first event.
pub const GROUP: &str = "bench";

/// The longest wait for a start, or for work to be done.
pub const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    AsItIs,
    /// A disk on which each `fdatasync` of Postgres takes 3 ms more.
    Slow,
}

#[derive(Debug)]
pub struct Backing {
    pub disk: Disk,
    folder: PathBuf,
    pub postgres: [Postgres; 2],
    pub kafka: Kafka,
    pub s3: Versitygw,
}

/// The services that a producer can reach beside its shards. A service out of reach counts as down, which pauses a
/// part.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    pub kafka: bool,
    pub s3: bool,
}

pub const ALL: Reach = Reach { kafka: true, s3: true };
/// Events are published; receipts wait.
pub const NO_S3: Reach = Reach { kafka: true, s3: false };
pub const SHARDS_ONLY: Reach = Reach { kafka: false, s3: false };

impl Backing {
    pub async fn start(folder: &Path, disk: Disk) -> Result<Self> {
        folder::create(folder)?;
        let library = if disk == Disk::Slow { Some(slow_disk(folder)?) } else { None };
        let postgres = async |name| match &library {
            Some(library) => Postgres::start_preloading(folder, name, library).await,
            None => Postgres::start(folder, name).await,
        };
        let (postgres1, postgres2, kafka, s3) = tokio::try_join!(
            postgres("postgres1"),
            postgres("postgres2"),
            Kafka::start(folder, "kafka"),
            Versitygw::start(folder, "s3"),
        )?;
        let backing = Self { disk, folder: folder.to_owned(), postgres: [postgres1, postgres2], kafka, s3 };
        for shard in &backing.postgres {
            shard.create_database(DATABASE).await?;
        }
        provision(folder, backing.environment(ALL)).await?;
        Ok(backing)
    }

    pub fn dsns(&self) -> [String; 2] {
        [0, 1].map(|shard| self.postgres[shard].dsn(DATABASE))
    }

    pub async fn connect(&self) -> Result<[PgConnection; 2]> {
        let [first, second] = self.dsns();
        Ok([postgres::connect(&first).await?, postgres::connect(&second).await?])
    }

    /// Executes statements on both shards, concurrently.
    pub async fn execute(&self, statements: &str) -> Result<()> {
        let on_each = self.connect().await?.into_iter().map(async |mut connection| {
            let statements = AssertSqlSafe(statements.to_owned());
            sqlx::raw_sql(statements).execute(&mut connection).await.map(drop)
        });
        try_join_all(on_each).await.with_context(|| format!("execute {statements}")).map(drop)
    }

    /// Inserts orders `from` to `to` into the tables of each shard, a millisecond apart, of users `a-0` to `a-999`.
    pub async fn fill(&self, from: u64, to: u64) -> Result<()> {
        let insert = format!(
            "INSERT INTO orders (id, user_id, product_name, quantity, price, status, receipt_s3_key, created_at, updated_at) \
             SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'a-' || n % 1000, 'Wireless Mouse', 2, 29.99, \
             'created', 'receipts/a-' || n % 1000 || '/' || n || '.txt', timestamptz '2026-01-01' + n * interval '1 ms', \
             timestamptz '2026-01-01' + n * interval '1 ms' FROM generate_series({from}, {to} - 1) AS n"
        );
        self.execute(&insert).await?;
        self.execute("VACUUM (ANALYZE) orders").await?;
        self.execute("CHECKPOINT").await
    }

    /// Returns the sum of a count over both shards.
    pub async fn count(&self, query: &'static str) -> Result<i64> {
        let mut sum = 0;
        for mut connection in self.connect().await? {
            let count: i64 = sqlx::query_scalar(query).fetch_one(&mut connection).await.context(query)?;
            sum += count;
        }
        Ok(sum)
    }

    /// Returns the bytes of WAL that both shards have written since their creation.
    pub async fn wal_bytes(&self) -> Result<f64> {
        Ok(self.count("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").await? as f64)
    }

    /// Returns the bytes in Kafka's logs, its own topics included, without the indexes, which are allocated in advance.
    pub fn kafka_bytes(&self) -> Result<f64> {
        fn logs(folder: &Path) -> u64 {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let bytes = entries.map(|entry| match entry.metadata() {
                Ok(found) if found.is_dir() => logs(&entry.path()),
                Ok(found) if entry.path().extension().is_some_and(|extension| extension == "log") => found.len(),
                _ => 0,
            });
            bytes.sum()
        }
        let folder = self.folder.join("data").join("kafka");
        let bytes = logs(&folder);
        ensure!(bytes > 0, "no logs of Kafka are below {}", folder.display());
        Ok(bytes as f64)
    }

    /// Restores the same start for each measurement: nothing stored, nothing dirty.
    pub async fn empty(&self) -> Result<()> {
        empty(&self.postgres).await
    }

    pub async fn producer(&self, reach: Reach) -> Result<Producer> {
        self.producer_with(reach, &[]).await
    }

    /// Starts a second producer, beside one that leads the relays.
    pub async fn bystander(&self) -> Result<Producer> {
        let producer = Producer::builder(&self.folder, self.environment(ALL)).instance("bystander").start().await?;
        producer.ready(PATIENCE).await?;
        Ok(producer)
    }

    pub async fn producer_with(&self, reach: Reach, settings: &[(&str, &str)]) -> Result<Producer> {
        let mut environment = self.environment(reach);
        environment.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let producer = Producer::builder(&self.folder, environment).instance("producer").start().await?;
        // Ready means ready for orders; Kafka and S3 may be down.
        producer.ready(PATIENCE).await?;
        Ok(producer)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a member of a group, which begins at the first event if it is new.
    pub async fn consumer(&self, group: &str) -> Result<Consumer> {
        let environment = self
            .kafka
            .environment()
            .into_iter()
            .chain([("KAFKA_TOPIC".to_owned(), TOPIC.to_owned()), ("KAFKA_GROUP_ID".to_owned(), group.to_owned())]);
        Consumer::builder(&self.folder, environment.collect()).instance("consumer").start().await
    }

    /// Returns the variables of Kafka and S3, for parts with shards, topics and a bucket of their own.
    pub fn services(&self) -> Environment {
        [
            ("KAFKA_BROKERS", self.kafka.bootstrap()),
            ("S3_ENDPOINT", self.s3.endpoint()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", versitygw::ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", versitygw::SECRET_ACCESS_KEY.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn environment(&self, reach: Reach) -> Environment {
        let [first, second] = self.dsns();
        let mut environment = self.services();
        let mut set = |name: &str, value: String| environment.push((name.to_owned(), value));
        set("KAFKA_TOPIC", TOPIC.to_owned());
        set("SHARDS", "shard1=A-M,shard2=N-Z".to_owned());
        set("PG_SHARD1_DSN", first);
        set("PG_SHARD2_DSN", second);
        set("S3_BUCKET", BUCKET.to_owned());
        // Nothing listens at port 1. The last of two settings of the same name counts.
        if !reach.kafka {
            set("KAFKA_BROKERS", "127.0.0.1:1".to_owned());
        }
        if !reach.s3 {
            set("S3_ENDPOINT", "http://127.0.0.1:1".to_owned());
        }
        environment
    }
}

/// Returns `HOST:PORT` of an `http://` address.
pub fn address(url: &str) -> String {
    url.trim_start_matches("http://").to_owned()
}

/// Returns the sum of a metric over its labels.
pub async fn metric(admin_url: &str, name: &str) -> Result<f64> {
    let text = http::client().get(format!("{admin_url}/metrics")).send().await?.text().await?;
    Ok(text
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
}

/// Empties the tables, and writes a checkpoint so that nothing is dirty.
pub async fn empty(shards: &[Postgres]) -> Result<()> {
    let on_each = shards.iter().map(async |shard| {
        let mut connection = postgres::connect(&shard.dsn(DATABASE)).await?;
        sqlx::raw_sql(TRUNCATE).execute(&mut connection).await.context("empty the tables")?;
        sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await.context("write a checkpoint")?;
        anyhow::Ok(())
    });
    try_join_all(on_each).await.map(drop)
}

/// Waits until nothing is left to do, as far as a producer with that reach can do it: events, receipts.
pub async fn settled(backing: &Backing, reach: Reach) -> Result<()> {
    let waiting = if reach.s3 {
        "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM receipt_jobs)"
    } else {
        "SELECT count(*) FROM outbox"
    };
    eventually("the queues to be empty", PATIENCE, async || {
        let left = backing.count(waiting).await?;
        ensure!(left == 0, "{left} events and receipts are left");
        Ok(())
    })
    .await
}

fn slow_disk(folder: &Path) -> Result<PathBuf> {
    let source = folder.join("slow_disk.c");
    let library = folder.join("slow_disk.so");
    std::fs::write(&source, include_str!("../assets/slow_disk.c")).context("write slow_disk.c")?;
    let status =
        Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    ensure!(status.context("run cc")?.success(), "cc failed to compile {}", source.display());
    Ok(library)
}
