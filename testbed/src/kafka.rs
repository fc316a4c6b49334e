//! One real Kafka on loopback: a KRaft node that is broker and controller, as small as possible.
//!
//! Promises the same ports and data across stop, kill and start, that topics are never created by mistake, and that
//! "up" means the broker appears in its own metadata. The only listener for clients of a secured Kafka requires TLS and
//! a login (SASL_SSL, SCRAM-SHA-512). The broker uses it too.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};

use crate::{
    certificates::Pair,
    folder, port,
    process::{Launch, Process},
    product::Environment,
    service::{Service, wait_until_answered},
    tools,
};

const START_DEADLINE: Duration = Duration::from_secs(90);

/// The cluster's id: 22 characters of base64. Any 16 bytes will do, because each cluster here is alone.
const CLUSTER_ID: &str = "b3JkZXJmbG93LXRlc3RiZQ";

/// The user that may log in to a secured Kafka, with SCRAM-SHA-512.
pub const USER: &str = "orderflow";
pub const PASSWORD: &str = "a-password-of-kafka";

/// The only host that a secured Kafka's certificate names.
const HOST: &str = "127.0.0.1";

/// Options of a JVM that ends soon: only the faster of its two compilers.
const SHORT_LIVED: &[&str] = &["-XX:TieredStopAtLevel=1"];

/// A running Kafka.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    port: u16,
    tls: Option<Tls>,
}

/// A further listener, for clients that connect another way, such as through a [`Proxy`](crate::Proxy).
#[derive(Debug, Clone, Copy)]
pub struct Listener {
    /// The port on which Kafka listens.
    pub port: u16,
    /// The port that Kafka advertises to those clients.
    pub advertised: u16,
}

/// The files of a secured Kafka.
#[derive(Debug)]
struct Tls {
    /// Key and certificate of the broker.
    key_store: PathBuf,
    /// The authority that the broker trusts, as a client of its own.
    ca: PathBuf,
}

impl Kafka {
    /// Starts `name` below `folder` on free ports; formats its storage if it is new.
    pub async fn start(folder: &Path, name: &str) -> Result<Self> {
        Self::start_on(folder, name, port::free()?).await
    }

    /// Starts a Kafka with a chosen client port.
    pub async fn start_on(folder: &Path, name: &str, port: u16) -> Result<Self> {
        Self::start_with(folder, name, port, &[], None, &[], "").await
    }

    /// Starts a Kafka that lives for a few tests: it optimizes less, and so starts sooner and for less CPU.
    pub async fn start_short_lived(folder: &Path, name: &str) -> Result<Self> {
        Self::start_with(folder, name, port::free()?, &[], None, SHORT_LIVED, "").await
    }

    /// Starts a Kafka with further listeners beside the one that [`Kafka::bootstrap`] returns.
    pub async fn start_behind(folder: &Path, name: &str, listeners: &[Listener]) -> Result<Self> {
        Self::start_with(folder, name, port::free()?, listeners, None, &[], "").await
    }

    /// Starts a secured, short-lived Kafka; the certificate must name 127.0.0.1.
    pub async fn start_secured(folder: &Path, name: &str, identity: &Pair) -> Result<Self> {
        Self::start_with(folder, name, port::free()?, &[], Some(identity), SHORT_LIVED, "").await
    }

    /// Starts a short-lived Kafka that forgets the offsets of a group without members after a minute.
    pub async fn start_forgetful(folder: &Path, name: &str) -> Result<Self> {
        Self::start_with(folder, name, port::free()?, &[], None, SHORT_LIVED, FORGETFUL_PROPERTIES).await
    }

    /// Starts a Kafka. `properties` are further lines of the broker's settings; the last of two lines for one name
    /// counts.
    async fn start_with(
        folder: &Path,
        name: &str,
        port: u16,
        further: &[Listener],
        identity: Option<&Pair>,
        jvm: &[&str],
        properties: &str,
    ) -> Result<Self> {
        let storage = folder::data(folder, name)?;
        let log = folder::log(folder, name)?;
        let tls = identity.map(|_| Tls::in_folder(&storage));
        let settings = storage.join("server.properties");
        if !settings.exists() {
            format(&storage, &log, port, further, tls.as_ref()).await?;
        }
        if let (Some(tls), Some(identity)) = (&tls, identity) {
            tls.write(identity)?;
        }
        // The broker's port may differ from the last start; the controller's was written into the storage.
        let controller = controller_port(&storage)?;
        let text = server_properties(&storage, port, controller, further, tls.as_ref());
        write(&settings, &format!("{text}{properties}"))?;
        let launch = java(name, &log, &storage)?
            .arguments(jvm)
            .arguments(["-Xms256m", "-Xmx512m"])
            .argument("kafka.Kafka")
            .argument(&settings);
        let kafka = Self { process: Process::start(launch)?, port, tls };
        kafka.wait_until_up().await?;
        Ok(kafka)
    }

    /// Replaces the certificate of a secured Kafka; the next start uses it.
    pub fn renew(&self, identity: &Pair) -> Result<()> {
        self.tls.as_ref().context("renew the certificate of a Kafka without TLS")?.write(identity)
    }

    /// Returns the address that clients start from.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the settings of a client of the testbed's own.
    pub fn client(&self) -> ClientConfig {
        let mut client = plain_client(&self.bootstrap());
        if let Some(tls) = &self.tls {
            client
                .set("security.protocol", "SASL_SSL")
                .set("ssl.ca.location", tls.ca.to_string_lossy())
                .set("sasl.mechanisms", "SCRAM-SHA-512")
                .set("sasl.username", USER)
                .set("sasl.password", PASSWORD);
        }
        client
    }

    /// Returns the variables with which the product becomes a client.
    pub fn environment(&self) -> Environment {
        let mut environment = vec![("KAFKA_BROKERS", self.bootstrap())];
        if let Some(tls) = &self.tls {
            environment.extend([
                ("KAFKA_TLS", "true".to_owned()),
                ("KAFKA_CA_FILE", tls.ca.to_string_lossy().into_owned()),
                ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512".to_owned()),
                ("KAFKA_SASL_USERNAME", USER.to_owned()),
                ("KAFKA_SASL_PASSWORD", PASSWORD.to_owned()),
            ]);
        }
        environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl Tls {
    fn in_folder(storage: &Path) -> Self {
        Self { key_store: storage.join("broker.pem"), ca: storage.join("ca.crt") }
    }

    fn write(&self, identity: &Pair) -> Result<()> {
        folder::write_private(&self.key_store, &format!("{}{}", identity.key, identity.certificate))?;
        folder::write_private(&self.ca, &identity.authority)
    }
}

impl Service for Kafka {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "answer with its metadata", START_DEADLINE, || async {
            ask(self.client()).await
        }))
    }
}

/// Checks that the Kafka at `bootstrap`, which requires no login, names a broker.
pub async fn probe(bootstrap: &str) -> Result<()> {
    ask(plain_client(bootstrap)).await
}

pub(crate) fn plain_client(bootstrap: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", bootstrap);
    client
}

async fn ask(mut client: ClientConfig) -> Result<()> {
    let client: BaseConsumer = client
        // The first connection is refused while Kafka starts; the client must not back off for seconds then.
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "100")
        .create()
        .context("create a Kafka client")?;
    let asked = tokio::task::spawn_blocking(move || {
        let metadata = client.fetch_metadata(None, Duration::from_secs(1)).context("read Kafka's metadata")?;
        ensure!(!metadata.brokers().is_empty(), "Kafka names no broker");
        Ok(())
    });
    asked.await.context("query Kafka")?
}

/// Returns a Java command with the options that formatting and running share.
fn java(name: &str, log: &Path, storage: &Path) -> Result<Launch> {
    let mut logging = std::ffi::OsString::from("-Dlog4j2.configurationFile=");
    logging.push(storage.join("log4j2.properties"));
    Ok(Launch::new(name, tools::java()?, log)
        .folder(storage)
        // One collector thread and the shared class archive: the JVM starts faster, and the heap is small.
        .arguments(["-XX:+UseSerialGC", "-Xshare:auto"])
        .argument(logging)
        .argument("-cp")
        .argument(tools::kafka_class_path()?))
}

/// Prepares new storage. The settings file is written last: without it, the storage does not count as formatted.
async fn format(storage: &Path, log: &Path, port: u16, further: &[Listener], tls: Option<&Tls>) -> Result<()> {
    let _ = std::fs::remove_dir_all(storage);
    folder::create(storage)?;
    let controller = port::free()?;
    write(&storage.join("controller.port"), &controller.to_string())?;
    write(&storage.join("log4j2.properties"), LOGGING)?;
    let settings = storage.join("format.properties");
    write(&settings, &server_properties(storage, port, controller, further, tls))?;
    // The first user must exist before anyone can log in to create one.
    let user = tls.map(|_| format!("--add-scram=SCRAM-SHA-512=[name={USER},password={PASSWORD}]"));
    let launch = java("kafka format", log, storage)?
        .arguments(SHORT_LIVED)
        .arguments(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "--standalone", "-c"])
        .argument(&settings)
        .arguments(user);
    let format = Process::start(launch)?;
    let status = format.wait_for_exit(START_DEADLINE).await?;
    ensure!(status.success(), "format Kafka's storage ({status}):\n{}", format.log_tail(crate::process::TAIL));
    Ok(())
}

fn controller_port(storage: &Path) -> Result<u16> {
    let file = storage.join("controller.port");
    std::fs::read_to_string(&file)
        .with_context(|| format!("read {}", file.display()))?
        .trim()
        .parse()
        .with_context(|| format!("read a port from {}", file.display()))
}

fn server_properties(storage: &Path, port: u16, controller: u16, further: &[Listener], tls: Option<&Tls>) -> String {
    let protocol = if tls.is_some() { "SASL_SSL" } else { "PLAINTEXT" };
    let mut listeners = format!("{protocol}://{HOST}:{port},CONTROLLER://{HOST}:{controller}");
    let (mut advertised, mut protocols) = (listeners.clone(), String::new());
    for (number, listener) in further.iter().enumerate() {
        let _ = write!(listeners, ",FURTHER{number}://{HOST}:{}", listener.port);
        let _ = write!(advertised, ",FURTHER{number}://{HOST}:{}", listener.advertised);
        let _ = write!(protocols, ",FURTHER{number}:PLAINTEXT");
    }
    let mut text = format!("log.dirs={}\n", storage.join("log").display());
    let _ = writeln!(text, "controller.quorum.bootstrap.servers={HOST}:{controller}");
    let _ = writeln!(text, "listeners={listeners}");
    let _ = writeln!(text, "advertised.listeners={advertised}");
    let _ = writeln!(text, "inter.broker.listener.name={protocol}");
    let _ = writeln!(
        text,
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT{protocols}"
    );
    if let Some(Tls { key_store, ca }) = tls {
        let _ = writeln!(text, "ssl.keystore.location={}", key_store.display());
        let _ = writeln!(text, "ssl.truststore.location={}", ca.display());
        let _ = writeln!(
            text,
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
             org.apache.kafka.common.security.scram.ScramLoginModule required username=\"{USER}\" password=\"{PASSWORD}\";"
        );
        text.push_str(SECURED_PROPERTIES);
    }
    text.push_str(SERVER_PROPERTIES);
    text
}

/// The settings that all secured Kafkas here share.
const SECURED_PROPERTIES: &str = "\
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
ssl.keystore.type=PEM
ssl.truststore.type=PEM
";

/// The settings that all Kafkas here share.
const SERVER_PROPERTIES: &str = "\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A topic that was not provisioned is a mistake that must show.
auto.create.topics.enable=false
# 50 partitions each would cost seconds at the first transaction.
offsets.topic.num.partitions=4
# Longer than any topic keeps its records: a group that was away must not begin again from the start.
offsets.retention.minutes=86400
transaction.state.log.num.partitions=4
# A dead producer's transaction holds readers back until this check finds it timed out; the default is 10 s.
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=6000
# After kill -9 the broker may register again only when its former session has timed out; the default is 9 s.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
# The default buffer is a quarter of the heap.
log.cleaner.dedupe.buffer.size=16777216
";

/// The shortest retention of offsets that Kafka allows.
const FORGETFUL_PROPERTIES: &str = "\
offsets.retention.minutes=1
offsets.retention.check.interval.ms=1000
";

/// The logging that shows more than errors, which is log4j's default.
const LOGGING: &str = "\
status=error
appender.stdout.type=Console
appender.stdout.name=stdout
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=%d{ISO8601} %p %m (%c{1})%n
rootLogger.level=info
rootLogger.appenderRef.stdout.ref=stdout
";

fn write(file: &PathBuf, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
