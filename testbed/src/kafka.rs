//! One real Kafka on loopback: a KRaft node that is broker and controller, as small as it goes.
//!
//! Promises the same ports and data across stop, kill and start, that topics are never made by mistake, and that "up"
//! means the broker is in its own metadata.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::process::{Launch, Process};
use crate::service::{Service, wait_until_answered};
use crate::{folder, port, tools};

const START_DEADLINE: Duration = Duration::from_secs(90);

/// 22 characters of base64: any 16 bytes will do, each cluster here is alone.
const CLUSTER_ID: &str = "b3JkZXJmbG93LXRlc3RiZQ";

/// A running Kafka.
#[derive(Debug)]
pub struct Kafka {
    process: Process,
    port: u16,
}

impl Kafka {
    /// Starts `name` below `folder` on free ports; formats its storage if it is new.
    pub async fn start(folder: &Path, name: &str) -> Result<Self> {
        Self::start_on(folder, name, port::free()?).await
    }

    /// The same with the client port chosen.
    pub async fn start_on(folder: &Path, name: &str, port: u16) -> Result<Self> {
        let storage = folder::data(folder, name)?;
        let log = folder::log(folder, name)?;
        let settings = storage.join("server.properties");
        if !settings.exists() {
            format(&storage, &log, port).await?;
        }
        // The broker's port may be another one than last time; the controller's was written into the storage.
        let controller = controller_port(&storage)?;
        write(&settings, &server_properties(&storage, port, controller))?;
        let launch =
            java(name, &log, &storage)?.arguments(["-Xms256m", "-Xmx512m"]).argument("kafka.Kafka").argument(&settings);
        let kafka = Self { process: Process::start(launch)?, port };
        kafka.wait_until_up().await?;
        Ok(kafka)
    }

    /// The address clients start from.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Service for Kafka {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "answer with its metadata", START_DEADLINE, || async {
            probe(&self.bootstrap()).await
        }))
    }
}

/// Whether the Kafka at `bootstrap` names a broker.
pub async fn probe(bootstrap: &str) -> Result<()> {
    let client: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        // The first connection is refused while Kafka starts; the client must not back off for seconds then.
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "100")
        .create()
        .context("make a Kafka client")?;
    let asked = tokio::task::spawn_blocking(move || {
        let metadata = client.fetch_metadata(None, Duration::from_secs(1)).context("read Kafka's metadata")?;
        ensure!(!metadata.brokers().is_empty(), "Kafka names no broker");
        Ok(())
    });
    asked.await.context("ask Kafka")?
}

/// A Java command with what formatting and running have in common.
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

/// Prepares new storage. The settings file is written last: while it is missing, the storage is not there.
async fn format(storage: &Path, log: &Path, port: u16) -> Result<()> {
    let _ = std::fs::remove_dir_all(storage);
    folder::create(storage)?;
    let controller = port::free()?;
    write(&storage.join("controller.port"), &controller.to_string())?;
    write(&storage.join("log4j2.properties"), LOGGING)?;
    let settings = storage.join("format.properties");
    write(&settings, &server_properties(storage, port, controller))?;
    let launch = java("kafka format", log, storage)?
        .arguments([
            "-XX:TieredStopAtLevel=1",
            "kafka.tools.StorageTool",
            "format",
            "-t",
            CLUSTER_ID,
            "--standalone",
            "-c",
        ])
        .argument(&settings);
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

fn server_properties(storage: &Path, port: u16, controller: u16) -> String {
    let mut text = format!("log.dirs={}\n", storage.join("log").display());
    let _ = writeln!(text, "controller.quorum.bootstrap.servers=127.0.0.1:{controller}");
    let _ = writeln!(text, "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}");
    let _ = writeln!(text, "advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}");
    text.push_str(SERVER_PROPERTIES);
    text
}

/// Everything that is the same for each Kafka here.
const SERVER_PROPERTIES: &str = "\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# A topic that nobody provisioned is a mistake to be seen.
auto.create.topics.enable=false
# 50 partitions each would cost seconds at the first transaction.
offsets.topic.num.partitions=4
# Longer than any topic keeps its records: a group that was away must not begin again from the start.
offsets.retention.minutes=86400
transaction.state.log.num.partitions=4
# A dead producer's transaction holds readers back until this look finds it timed out; the default is 10 s.
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=6000
# After kill -9 the broker may register again only when its former session has timed out; the default is 9 s.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
# The default buffer is a quarter of the heap.
log.cleaner.dedupe.buffer.size=16777216
";

/// Without it, log4j shows errors only.
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
