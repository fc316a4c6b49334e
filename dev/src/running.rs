//! The running parts of `up`: how they are started, listed and stopped.
//!
//! Backing services start concurrently; the programs follow once Postgres and Kafka are up. They stop in reverse: a client before its
//! service.

use std::{
    future::ready,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures_util::future::{BoxFuture, Either, select};
use orderflow_testbed::{
    Consumer, Kafka, LocalStack, Postgres, Producer, Prometheus, Service, localstack, product::Environment, provision,
};

use crate::{
    control::Control,
    controls,
    environment::{database, environment},
    monitoring,
    ports::Ports,
    progress::Progress,
    receipts,
    state::{Entry, Probe, State},
};

/// The longest until the product is ready: all it needs is up, and only its own first checks are left.
const READY_DEADLINE: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Running {
    pub(super) postgres: [Arc<Postgres>; 2],
    pub(super) kafka: Arc<Kafka>,
    pub(super) localstack: Arc<LocalStack>,
    pub(super) producer: Arc<Producer>,
    pub(super) consumer: Arc<Consumer>,
    /// Prometheus, which runs with `MONITORING=1`.
    pub(super) prometheus: Option<Arc<Prometheus>>,
    pub(super) addresses: Addresses,
    controls: [Arc<Control>; 5],
    folder: PathBuf,
    environment: Environment,
}

/// The addresses of the product's processes and of the controls. Their ports are given, so they stay the same.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) producer: String,
    pub(super) producer_admin: String,
    pub(super) consumer_admin: String,
    pub(super) controls: String,
}

/// A process, and its control if it has one.
pub(super) struct Part {
    pub(super) service: Arc<dyn Service>,
    pub(super) control: Option<Arc<Control>>,
}

impl Running {
    /// Starts everything. Producer and consumer start as soon as Postgres and Kafka are up: they need no S3, and wait for tables
    /// and topics that do not exist yet.
    pub(super) async fn start(folder: &Path, ports: &Ports, progress: &Progress) -> Result<Self> {
        let shard = async |number: usize, port: u16| {
            let postgres = Postgres::start_on(folder, &format!("postgres{number}"), port).await?;
            let dsn = postgres.create_database(&database(number)).await?;
            anyhow::Ok((Arc::new(postgres), dsn))
        };
        let stores = async {
            tokio::try_join!(
                progress.part("Postgres, shard 1", shard(1, ports.pg_shard1_port)),
                progress.part("Postgres, shard 2", shard(2, ports.pg_shard2_port)),
                progress.part("Kafka", Kafka::start_on(folder, "kafka", ports.kafka_port)),
            )
        };
        let s3 = progress.part("S3 (LocalStack)", LocalStack::start_on(folder, "localstack", ports.s3_port));
        let (stores, s3): (_, BoxFuture<'_, Result<LocalStack>>) = match select(pin!(stores), Box::pin(s3)).await {
            Either::Left((stores, s3)) => (stores?, s3),
            Either::Right((s3, stores)) => (stores.await?, Box::pin(ready(s3))),
        };
        let ((postgres1, dsn1), (postgres2, dsn2), kafka) = stores;
        let environment = environment(&kafka, &localstack::endpoint(ports.s3_port), dsn1, dsn2);

        let producer = Producer::builder(folder, environment.clone())
            .instance("producer")
            .env("PORT", ports.port.to_string())
            .env("DEAD_LETTER_REPLAY", "true")
            .env("CONTROLS_URL", controls::url(ports))
            .env("ADMIN_PORT", ports.admin_port.to_string());
        let consumer_environment = environment.iter().filter(|(name, _)| name.starts_with("KAFKA_")).cloned().collect();
        let consumer = Consumer::builder(folder, consumer_environment)
            .instance("consumer")
            .env("ADMIN_PORT", ports.consumer_admin_port.to_string());
        let (localstack, producer, consumer) = tokio::try_join!(
            async {
                let localstack = s3.await?;
                progress.part("tables, topics, bucket", provision(folder, environment.clone())).await?;
                // Everything works without the receipts, and the error names the problem.
                let receipts = receipts::queue_again(folder, environment.clone());
                let checked = progress.part("checking for receipts that S3 forgot", receipts).await;
                checked.unwrap_or_else(|error| eprintln!("  {error:#}"));
                anyhow::Ok(localstack)
            },
            progress.part("producer", async {
                let producer = producer.start().await?;
                producer.ready(READY_DEADLINE).await.map(|()| producer)
            }),
            progress.part("consumer", async {
                let consumer = consumer.start().await?;
                consumer.ready(READY_DEADLINE).await.map(|()| consumer)
            }),
        )?;
        let addresses = Addresses {
            producer: producer.url()?,
            producer_admin: producer.admin_url()?,
            consumer_admin: consumer.admin_url()?,
            controls: controls::url(ports),
        };
        let prometheus = if ports.monitoring {
            let programs =
                [("producer", addresses.producer_admin.as_str()), ("consumer", addresses.consumer_admin.as_str())];
            let start = monitoring::start(folder, ports.prometheus_port, programs);
            Some(Arc::new(progress.part("Prometheus", start).await?))
        } else {
            None
        };
        Ok(Self {
            prometheus,
            postgres: [postgres1, postgres2],
            kafka: Arc::new(kafka),
            localstack: Arc::new(localstack),
            producer: Arc::new(producer),
            consumer: Arc::new(consumer),
            addresses,
            controls: controls(),
            folder: folder.to_owned(),
            environment,
        })
    }

    /// Creates tables, topics and bucket again: LocalStack comes back without its bucket.
    pub(super) async fn provision(&self) -> Result<()> {
        provision(&self.folder, self.environment.clone()).await
    }

    /// Queues the receipts again that LocalStack has lost.
    pub(super) async fn queue_receipts_again(&self) -> Result<()> {
        receipts::queue_again(&self.folder, self.environment.clone()).await
    }

    /// Returns every process, in the order in which they are stopped.
    pub(super) fn parts(&self) -> Vec<Part> {
        let [s3, kafka, shard1, shard2, consumer] = self.controls.clone();
        let mut parts = vec![
            Part { service: self.producer.clone(), control: None },
            Part { service: self.consumer.clone(), control: Some(consumer) },
            Part { service: self.localstack.clone(), control: Some(s3) },
            Part { service: self.kafka.clone(), control: Some(kafka) },
            Part { service: self.postgres[0].clone(), control: Some(shard1) },
            Part { service: self.postgres[1].clone(), control: Some(shard2) },
        ];
        parts.extend(self.prometheus.clone().map(|prometheus| Part { service: prometheus, control: None }));
        parts
    }

    /// Returns the parts that the controls can switch off and on.
    pub(super) fn controls(&self) -> Vec<Arc<Control>> {
        self.controls.to_vec()
    }

    /// Returns what runs now; called again after a process was started again or switched off.
    pub(super) fn state(&self) -> State {
        let Addresses { producer, producer_admin, consumer_admin, controls } = &self.addresses;
        let [s3, kafka, shard1, shard2, consumer] = &self.controls;
        let postgres = |postgres: &Postgres, control, number| {
            let probe = Probe::Postgres { port: postgres.port() };
            entry(postgres, Some(control), &postgres.dsn(&database(number)), probe)
        };
        let ready = |admin_url: &String| Probe::Ready { admin_url: admin_url.clone() };
        let (bootstrap, endpoint) = (self.kafka.bootstrap(), self.localstack.endpoint());
        let mut processes = vec![
            entry(&*self.producer, None, producer, ready(producer_admin)),
            entry(&*self.consumer, Some(consumer), consumer_admin, ready(consumer_admin)),
            postgres(&self.postgres[0], shard1, 1),
            postgres(&self.postgres[1], shard2, 2),
            entry(&*self.kafka, Some(kafka), &bootstrap, Probe::Kafka { bootstrap: bootstrap.clone() }),
            entry(&*self.localstack, Some(s3), &endpoint, Probe::LocalStack { endpoint: endpoint.clone() }),
        ];
        processes.extend(self.prometheus.as_ref().map(|prometheus| {
            let address = prometheus.address();
            entry(&**prometheus, None, &address, Probe::Prometheus { address: address.clone() })
        }));
        State { pid: std::process::id(), controls: controls.clone(), processes }
    }

    /// Stops everything gracefully, with one line each.
    pub(super) async fn stop(&self) {
        for Part { service, .. } in self.parts() {
            let started = Instant::now();
            match service.stop().await {
                Ok(()) => eprintln!("  stopped {} ({:.1} s)", service.name(), started.elapsed().as_secs_f64()),
                Err(error) => eprintln!("  {} did not stop: {error:#}", service.name()),
            }
        }
    }
}

/// Returns the controls, in the order in which they are listed.
fn controls() -> [Arc<Control>; 5] {
    [
        Control::new(
            "s3",
            "S3 (LocalStack)",
            "Orders are accepted, and their receipts wait. LocalStack forgets its objects; they are written again when it is back.",
        ),
        Control::new("kafka", "Kafka", "Orders are accepted and stored; their events and notifications wait."),
        Control::new(
            "shard1",
            "Postgres, shard 1",
            "Orders of users A to M are refused at once; all other users are unaffected.",
        ),
        Control::new(
            "shard2",
            "Postgres, shard 2",
            "Orders of users N to Z, and of users whose names begin with anything but a letter, are refused at once; users A \
             to M are unaffected.",
        ),
        Control::new("consumer", "Consumer", "Orders are accepted and published; their notifications wait in Kafka."),
    ]
    .map(Arc::new)
}

fn entry(service: &dyn Service, control: Option<&Arc<Control>>, address: &str, probe: Probe) -> Entry {
    let switched_off = control.is_some_and(|control| !control.is_wanted());
    Entry { name: service.name().to_owned(), pid: service.pid(), address: address.to_owned(), switched_off, probe }
}
