//! A test's own pipeline: two Postgres shards, Kafka and S3, provisioned.
//!
//! By default a stack uses services that are started once per test process, with its own databases, topics, bucket and
//! consumer group. A test that kills or freezes a service asks for services of its own. Either way no test sees another
//! test's data. Postgres and Kafka of a secured stack take TLS only. S3 is versitygw unless a test asks for LocalStack,
//! which `make up` runs.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use futures_util::future::try_join3;
use sqlx::PgConnection;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    Consumer, Isolation, Kafka, ObjectStore, Postgres, Producer, Record, Service, Store,
    certificates::Authority,
    folder, postgres,
    product::{self, Environment, Verified},
    s3, topic,
};

/// The longest that `verify` takes. The orders of a test take a second or two; a transaction that was left open takes
/// 20 s to end.
const VERIFY_DEADLINE: Duration = Duration::from_mins(2);

/// The backing services of a stack. They may live in a `static` beyond the runtime of the test that started them, so
/// they must not hold a connection, a client or a task.
#[derive(Debug)]
pub struct Services {
    pub postgres: [Postgres; 2],
    pub kafka: Kafka,
    pub s3: ObjectStore,
}

impl Services {
    async fn start(folder: &Path, prefix: &str, settings: Builder, store: Store) -> Result<Self> {
        if settings.secured {
            let authority = Authority::new("orderflow-testbed")?;
            let postgres =
                async |name: String| Postgres::start_secured(folder, &name, &authority.loopback("postgres")?).await;
            let kafka = async |name: String| Kafka::start_secured(folder, &name, &authority.loopback("kafka")?).await;
            return Self::start_with(folder, prefix, postgres, kafka, store).await;
        }
        let postgres = async |name: String| Postgres::start(folder, &name).await;
        if settings.forgetful {
            let kafka = async |name: String| Kafka::start_forgetful(folder, &name).await;
            return Self::start_with(folder, prefix, postgres, kafka, store).await;
        }
        let kafka = async |name: String| Kafka::start_short_lived(folder, &name).await;
        Self::start_with(folder, prefix, postgres, kafka, store).await
    }

    /// Returns the services that all stacks of this test process share; the first call starts them.
    async fn shared(folder: &Path, settings: Builder) -> Result<&'static Self> {
        static PLAIN: OnceCell<Services> = OnceCell::const_new();
        static SECURED: OnceCell<Services> = OnceCell::const_new();
        let (services, prefix) = if settings.secured { (&SECURED, "secured-") } else { (&PLAIN, "") };
        services.get_or_try_init(|| Self::start(folder, prefix, settings, Store::Versitygw)).await
    }

    async fn start_with(
        folder: &Path,
        prefix: &str,
        postgres: impl AsyncFn(String) -> Result<Postgres>,
        kafka: impl AsyncFn(String) -> Result<Kafka>,
        store: Store,
    ) -> Result<Self> {
        let name = |service: &str| format!("{prefix}{service}");
        let object_store = name("s3");
        let (postgres, kafka, s3) = try_join3(
            async { tokio::try_join!(postgres(name("postgres1")), postgres(name("postgres2"))) },
            kafka(name("kafka")),
            ObjectStore::start(folder, &object_store, store),
        )
        .await?;
        Ok(Self { postgres: postgres.into(), kafka, s3 })
    }

    fn all(&self) -> [&dyn Service; 4] {
        [&self.postgres[0], &self.postgres[1], &self.kafka, &self.s3]
    }
}

#[derive(Debug)]
enum Backing {
    Shared(&'static Services),
    Own(Box<Services>),
}

/// The provisioned pipeline of one test.
#[derive(Debug)]
pub struct Stack {
    backing: Backing,
    /// The object store that replaces the one of the other services.
    object_store: Option<ObjectStore>,
    folder: &'static Path,
    /// Eight unique characters, part of every name the stack uses.
    tag: String,
}

/// The kind of stack that a test needs; begun by [`Stack::builder`].
#[derive(Debug, Clone, Copy, Default)]
#[must_use]
pub struct Builder {
    own: bool,
    secured: bool,
    forgetful: bool,
    store: Option<Store>,
}

impl Builder {
    /// Starts services for this stack alone, which its test may kill, freeze and reconfigure. Dropping the stack ends
    /// them.
    pub fn own(mut self) -> Self {
        self.own = true;
        self
    }

    /// Makes Postgres take TLS only, and Kafka TLS with a login only, with certificates of a private authority.
    pub fn secured(mut self) -> Self {
        self.secured = true;
        self
    }

    /// Makes Kafka forget the offsets of a group without members after a minute. Needs [`Builder::own`].
    pub fn forgetful(mut self) -> Self {
        self.forgetful = true;
        self
    }

    /// Chooses the S3 server. LocalStack always belongs to this stack alone: it takes any region and credentials, keeps
    /// versions if configured to, and one key may be a prefix of another.
    pub fn store(mut self, store: Store) -> Self {
        self.store = Some(store);
        self
    }

    /// Starts what is not running yet, and provisions the stack.
    pub async fn start(self) -> Result<Stack> {
        ensure!(
            !self.forgetful || self.own,
            "start a stack: a forgetful Kafka cannot be shared, so call own() as well"
        );
        ensure!(!self.forgetful || !self.secured, "start a stack: a secured Kafka cannot be forgetful");
        let folder = folder::for_test_process()?;
        let store = self.store.unwrap_or(Store::Versitygw);
        if self.own {
            let services = Services::start(folder, &own_prefix(), self, store).await?;
            return Stack::provisioned(Backing::Own(Box::new(services)), None, folder).await;
        }
        let object_store = match store {
            Store::Versitygw => None,
            Store::Localstack => Some(ObjectStore::start(folder, &format!("{}s3", own_prefix()), store).await?),
        };
        let services = Services::shared(folder, self).await?;
        Stack::provisioned(Backing::Shared(services), object_store, folder).await
    }
}

impl Stack {
    /// Begins a stack on the services that this test process shares, without TLS.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Starts a stack on the services that this test process shares. A test must not kill, freeze or reconfigure those.
    pub async fn shared() -> Result<Self> {
        Self::builder().start().await
    }

    async fn provisioned(backing: Backing, object_store: Option<ObjectStore>, folder: &'static Path) -> Result<Self> {
        // The first half of a UUIDv7 is the time; the last digits are random.
        let tag = Uuid::now_v7().simple().to_string().split_off(24);
        let stack = Self { backing, object_store, folder, tag };
        for postgres in &stack.services().postgres {
            postgres.create_database(&stack.database()).await?;
        }
        stack.provision().await?;
        Ok(stack)
    }

    /// Runs `orderflow-provision` again; needed after LocalStack was started again, which forgets its bucket.
    pub async fn provision(&self) -> Result<()> {
        let mut environment = self.env();
        environment.push(("OWNER".to_owned(), format!("test/{}", self.tag)));
        // On a busy machine a service may not answer at once.
        environment.push(("WAIT".to_owned(), "30".to_owned()));
        product::provision(self.folder, environment).await
    }

    /// Runs `orderflow-producer verify` with these arguments.
    pub async fn verify(&self, arguments: &[&str]) -> Result<Verified> {
        self.verify_with(&[], arguments).await
    }

    /// Runs `orderflow-producer verify` with further variables.
    pub async fn verify_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Result<Verified> {
        let mut environment = self.env();
        environment.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        product::verify(self.folder, environment, arguments, VERIFY_DEADLINE).await
    }

    pub fn services(&self) -> &Services {
        match &self.backing {
            Backing::Shared(services) => services,
            Backing::Own(services) => services,
        }
    }

    /// Returns the Postgres of shard 1 or 2.
    pub fn postgres(&self, shard: usize) -> &Postgres {
        &self.services().postgres[shard - 1]
    }

    pub fn kafka(&self) -> &Kafka {
        &self.services().kafka
    }

    pub fn object_store(&self) -> &ObjectStore {
        self.object_store.as_ref().unwrap_or(&self.services().s3)
    }

    /// Returns the variables that the product needs to run on this stack.
    pub fn env(&self) -> Environment {
        let services = self.services();
        let mut environment = services.kafka.environment();
        let values = [
            ("KAFKA_TOPIC", self.topic()),
            ("KAFKA_GROUP_ID", self.group()),
            ("SHARDS", "shard1=A-M,shard2=N-Z".to_owned()),
            ("PG_SHARD1_DSN", self.dsn(1)),
            ("PG_SHARD2_DSN", self.dsn(2)),
            ("S3_ENDPOINT", self.object_store().endpoint()),
            ("S3_BUCKET", self.bucket()),
            ("AWS_REGION", s3::REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", self.object_store().access_key_id().to_owned()),
            ("AWS_SECRET_ACCESS_KEY", self.object_store().secret_access_key().to_owned()),
        ];
        environment.extend(values.map(|(name, value)| (name.to_owned(), value)));
        for shard in [1, 2] {
            let ca = self.postgres(shard).ca_file();
            environment.extend(ca.map(|ca| (format!("PG_SHARD{shard}_CA_FILE"), ca.to_string_lossy().into_owned())));
        }
        environment
    }

    /// Builds a producer on this stack; each call builds another instance.
    pub fn producer(&self) -> product::Builder<Producer> {
        Producer::builder(self.folder, self.env())
    }

    /// Builds a consumer on this stack. It sees Kafka only.
    pub fn consumer(&self) -> product::Builder<Consumer> {
        let environment = self.env().into_iter().filter(|(name, _)| name.starts_with("KAFKA_")).collect();
        Consumer::builder(self.folder, environment)
    }

    /// Opens a connection to the database of shard 1 or 2.
    pub async fn shard(&self, shard: usize) -> Result<PgConnection> {
        postgres::connect(&self.dsn(shard)).await
    }

    /// Returns the DSN of shard 1 or 2.
    pub fn dsn(&self, shard: usize) -> String {
        self.postgres(shard).dsn(&self.database())
    }

    /// Returns a new S3 client.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        self.object_store().s3()
    }

    /// Returns the records of a topic, from its beginning; see [`topic::read_with`].
    pub async fn read_topic(&self, topic: &str, isolation: Isolation) -> Result<Vec<Record>> {
        topic::read_with(self.kafka().client(), topic, isolation).await
    }

    /// Creates a topic beside the product's own, and waits until it can be read.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        topic::create(self.kafka().client(), name, partitions).await
    }

    /// Returns the topic of order events. The other three are named after it: `.notifications`, `.dlq`, `.relay`.
    pub fn topic(&self) -> String {
        format!("orders-{}", self.tag)
    }

    /// Returns the consumer group. It begins with the owner, as that of an OrderFlow does.
    pub fn group(&self) -> String {
        format!("test.{}", self.tag)
    }

    pub fn bucket(&self) -> String {
        format!("receipts-{}", self.tag)
    }

    /// Returns the name of the database on both shards.
    pub fn database(&self) -> String {
        format!("orders_{}", self.tag)
    }
}

/// Returns a unique prefix for the services of one stack.
fn own_prefix() -> String {
    static STARTED: AtomicUsize = AtomicUsize::new(1);
    format!("own{}-", STARTED.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Stack {
    fn drop(&mut self) {
        // A stack's own services print their logs when they are dropped; the shared ones are never dropped.
        if let Backing::Shared(services) = &self.backing {
            for service in services.all() {
                service.process().show_log();
            }
        }
    }
}
