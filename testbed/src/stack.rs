//! What an integration test starts from: two Postgres shards, Kafka and S3, provisioned, and nobody else's.
//!
//! `Stack::shared()` uses services that are started once per test process and gives each test its own databases,
//! topics, bucket and consumer group. `Stack::own()` starts services of its own, for a test that kills or freezes
//! them. Either way no test sees another. Of both there is a secured variant, whose Postgres and Kafka take TLS only.
//! Their S3 is versitygw; a stack of one's own may have LocalStack, which is what a laptop has.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use futures_util::future::try_join3;
use sqlx::PgConnection;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::certificates::Authority;
use crate::product::{self, Builder, Environment, Verified};
use crate::{Consumer, Isolation, Kafka, ObjectStore, Postgres, Producer, Record, Service, Store};
use crate::{folder, postgres, s3, topic};

/// What a test has is verified in a second or two; a transaction that somebody left open takes 20 s to end.
const VERIFY_DEADLINE: Duration = Duration::from_mins(2);

/// The backing services of a stack. They may live in a `static` beyond the runtime of the test that started them, so
/// nothing in here may hold a connection, a client or a task.
#[derive(Debug)]
pub struct Services {
    pub postgres: [Postgres; 2],
    pub kafka: Kafka,
    pub s3: ObjectStore,
}

impl Services {
    async fn shared(folder: &Path) -> Result<&'static Self> {
        static SHARED: OnceCell<Services> = OnceCell::const_new();
        SHARED.get_or_try_init(|| Services::start(folder, "", Store::Versitygw)).await
    }

    async fn start(folder: &Path, prefix: &str, store: Store) -> Result<Self> {
        let postgres = async |name: String| Postgres::start(folder, &name).await;
        let kafka = async |name: String| Kafka::start_short_lived(folder, &name).await;
        Self::start_with(folder, prefix, postgres, kafka, store).await
    }

    async fn start_forgetful(folder: &Path, prefix: &str) -> Result<Self> {
        let postgres = async |name: String| Postgres::start(folder, &name).await;
        let kafka = async |name: String| Kafka::start_forgetful(folder, &name).await;
        Self::start_with(folder, prefix, postgres, kafka, Store::Versitygw).await
    }

    async fn start_secured(folder: &Path, prefix: &str) -> Result<Self> {
        let authority = Authority::new("orderflow-testbed")?;
        let postgres =
            async |name: String| Postgres::start_secured(folder, &name, &authority.loopback("postgres")?).await;
        let kafka = async |name: String| Kafka::start_secured(folder, &name, &authority.loopback("kafka")?).await;
        Self::start_with(folder, prefix, postgres, kafka, Store::Versitygw).await
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

/// A provisioned stack of one test.
#[derive(Debug)]
pub struct Stack {
    backing: Backing,
    /// In place of the one that the other services came with.
    object_store: Option<ObjectStore>,
    folder: &'static Path,
    /// Eight characters that no other stack has; part of every name it uses.
    tag: String,
}

impl Stack {
    /// A stack on the services this test process shares. A test must not kill, freeze or reconfigure those.
    pub async fn shared() -> Result<Self> {
        let folder = folder::of_this_test_process()?;
        let services = Services::shared(folder).await?;
        Self::provisioned(Backing::Shared(services), None, folder).await
    }

    /// The same with LocalStack, and that its own: it takes any region and credentials, keeps versions if asked to, and one key may be the
    /// beginning of another.
    pub async fn shared_with_localstack() -> Result<Self> {
        let folder = folder::of_this_test_process()?;
        let localstack = ObjectStore::start(folder, &format!("{}s3", own_prefix()), Store::Localstack).await?;
        let services = Services::shared(folder).await?;
        Self::provisioned(Backing::Shared(services), Some(localstack), folder).await
    }

    /// The same where Postgres takes TLS only and Kafka TLS with a log-in only, with certificates of a private authority.
    pub async fn secured() -> Result<Self> {
        static SHARED: OnceCell<Services> = OnceCell::const_new();
        let folder = folder::of_this_test_process()?;
        let services = SHARED.get_or_try_init(|| Services::start_secured(folder, "secured-")).await?;
        Self::provisioned(Backing::Shared(services), None, folder).await
    }

    /// A stack on services of its own; dropping it ends them.
    pub async fn own() -> Result<Self> {
        Self::own_with(Store::Versitygw).await
    }

    /// The same with an S3 that the test chose.
    pub async fn own_with(store: Store) -> Result<Self> {
        let folder = folder::of_this_test_process()?;
        let services = Services::start(folder, &own_prefix(), store).await?;
        Self::provisioned(Backing::Own(Box::new(services)), None, folder).await
    }

    /// A stack of its own whose Kafka forgets the offsets of a group without members after a minute.
    pub async fn own_forgetful() -> Result<Self> {
        let folder = folder::of_this_test_process()?;
        let services = Services::start_forgetful(folder, &own_prefix()).await?;
        Self::provisioned(Backing::Own(Box::new(services)), None, folder).await
    }

    /// A secured stack on services of its own.
    pub async fn own_secured() -> Result<Self> {
        let folder = folder::of_this_test_process()?;
        let services = Services::start_secured(folder, &own_prefix()).await?;
        Self::provisioned(Backing::Own(Box::new(services)), None, folder).await
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
        // A machine that does more than this may not answer at once.
        environment.push(("WAIT".to_owned(), "30".to_owned()));
        product::provision(self.folder, environment).await
    }

    /// Runs `orderflow-producer verify` with these arguments.
    pub async fn verify(&self, arguments: &[&str]) -> Result<Verified> {
        self.verify_with(&[], arguments).await
    }

    /// The same with other variables.
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

    /// The Postgres of shard 1 or 2.
    pub fn postgres(&self, shard: usize) -> &Postgres {
        &self.services().postgres[shard - 1]
    }

    pub fn kafka(&self) -> &Kafka {
        &self.services().kafka
    }

    pub fn object_store(&self) -> &ObjectStore {
        self.object_store.as_ref().unwrap_or(&self.services().s3)
    }

    /// What the product needs to run on this stack.
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

    /// A producer on this stack, to be started; each call is another instance.
    pub fn producer(&self) -> Builder<Producer> {
        Producer::builder(self.folder, self.env())
    }

    /// A consumer on this stack, to be started. It is given nothing but Kafka.
    pub fn consumer(&self) -> Builder<Consumer> {
        let environment = self.env().into_iter().filter(|(name, _)| name.starts_with("KAFKA_")).collect();
        Consumer::builder(self.folder, environment)
    }

    /// A new connection to the database of shard 1 or 2.
    pub async fn shard(&self, shard: usize) -> Result<PgConnection> {
        postgres::connect(&self.dsn(shard)).await
    }

    /// The DSN of shard 1 or 2.
    pub fn dsn(&self, shard: usize) -> String {
        self.postgres(shard).dsn(&self.database())
    }

    /// A new S3 client.
    pub fn s3(&self) -> aws_sdk_s3::Client {
        self.object_store().s3()
    }

    /// What is in a topic now, from its beginning; see [`topic::read_with`].
    pub async fn read_topic(&self, topic: &str, isolation: Isolation) -> Result<Vec<Record>> {
        topic::read_with(self.kafka().client(), topic, isolation).await
    }

    /// Creates a topic that is none of the product's, and waits until it can be read.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        topic::create(self.kafka().client(), name, partitions).await
    }

    /// The topic of order events. The other three are named after it: `.notifications`, `.dlq`, `.relay`.
    pub fn topic(&self) -> String {
        format!("orders-{}", self.tag)
    }

    /// It begins with the owner, as the consumer group of an OrderFlow does.
    pub fn group(&self) -> String {
        format!("test.{}", self.tag)
    }

    pub fn bucket(&self) -> String {
        format!("receipts-{}", self.tag)
    }

    /// Its name on both shards.
    pub fn database(&self) -> String {
        format!("orders_{}", self.tag)
    }
}

/// No two services of a test process have one name.
fn own_prefix() -> String {
    static STARTED: AtomicUsize = AtomicUsize::new(1);
    format!("own{}-", STARTED.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Services of this stack's own show their logs when they are dropped; the shared ones never are.
        if let Backing::Shared(services) = &self.backing {
            for service in services.all() {
                service.process().show_log();
            }
        }
    }
}
