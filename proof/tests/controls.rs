//! The controls: each lets the product make one mistake on purpose, at the moment at which it does harm, and the
//! checker must notice. The same scene without the mistake must pass, or the checker would have noticed something else.
//!
//! The services are real; the mistakes are `defect`s of builds with failpoints.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use orderflow_proof::{
    checker::{self, Kind},
    client::{self, Clients},
    deployment::set_failpoint,
    history::{Clock, Recorder},
    observation::Sites,
    workload::{Manner, Plan},
};
use orderflow_testbed::{
    Isolation, Link, Producer, Proxy, Service, Stack, eventually, folder, port, product::Builder, wait::PATIENCE,
};
use sqlx::Connection as _;
use tokio::{sync::oneshot, task::JoinHandle};

const ORDERS: u64 = 120;

/// Orders per second.
const RATE: u32 = 100;

/// A stack, clients that use two producers, and their history.
struct Scene {
    stack: Stack,
    clients: Arc<Clients>,
    recorder: Arc<Recorder>,
    ports: [u16; 2],
    /// The mistake; `None` plays the scene without it.
    defect: Option<&'static str>,
}

/// Plays a scene without the mistake and with it.
async fn must_notice(kind: Kind, defect: &'static str, play: impl AsyncFn(&Scene) -> Result<()>) -> Result<()> {
    for defect in [None, Some(defect)] {
        let scene = Scene::set(defect).await?;
        play(&scene).await.with_context(|| format!("with {defect:?}"))?;
        let Scene { stack, clients, recorder, .. } = scene;
        drop(clients);
        let history = Arc::into_inner(recorder).context("a client still writes")?.finish()?;
        let sites = Sites::new(&stack);
        let seen = sites.observe().await?;
        let verdict = checker::check(&history, &seen);
        match defect {
            None => ensure!(verdict.passed(), "the checker found, without the mistake: {:#?}", verdict.findings),
            Some(defect) => {
                ensure!(verdict.count(kind) > 0, "{defect} was not noticed: {:#?}", verdict.findings);
                println!("{defect}: {} × {kind:?}, as in: {}", verdict.count(kind), verdict.findings[0].what);
            }
        }
    }
    Ok(())
}

impl Scene {
    async fn set(defect: Option<&'static str>) -> Result<Self> {
        let stack = Stack::shared().await?;
        let ports = [port::free()?, port::free()?];
        let file = folder::for_test_process()?.join(format!("{}.history.jsonl", stack.topic()));
        let recorder = Arc::new(Recorder::create(&file)?);
        let producers =
            ports.map(|port| client::Producer { name: port.to_string(), url: format!("http://127.0.0.1:{port}") });
        let clients =
            Clients { seed: 1, producers: producers.into(), recorder: recorder.clone(), clock: Clock::start() };
        Ok(Self { stack, clients: Arc::new(clients), recorder, ports, defect })
    }

    /// Builds the first or second of the producers that the clients know.
    fn producer(&self, number: usize, failpoints: &str) -> Builder<Producer> {
        self.stack
            .producer()
            .env("PORT", self.ports[number].to_string())
            .env("S3_TIMEOUT_MS", "500")
            .env("RECEIPT_LEASE_MS", "5000")
            .env("FAILPOINTS", failpoints)
    }

    /// Returns the value of `FAILPOINTS`: the mistake, if there is one, and `others`.
    fn failpoints(&self, others: &str) -> String {
        let defect = self.defect.map(|defect| format!("{defect}=return"));
        defect.into_iter().chain((!others.is_empty()).then(|| others.to_owned())).collect::<Vec<_>>().join(";")
    }

    /// Returns clients that know that producer only.
    fn only(&self, producer: &Producer) -> Result<Clients> {
        let producer = client::Producer { name: "only".to_owned(), url: producer.url()? };
        let (recorder, clock) = (self.recorder.clone(), self.clients.clock);
        Ok(Clients { seed: 1, producers: vec![producer], recorder, clock })
    }

    /// Starts to place orders. An order without a producer is retried until one runs.
    fn order(&self, first: u64) -> JoinHandle<Result<()>> {
        let clients = self.clients.clone();
        tokio::spawn(async move {
            // Nothing stops them.
            let (_running, stopped) = oneshot::channel();
            clients.run(first, ORDERS, RATE, stopped).await
        })
    }

    /// Runs a first producer that ends at a failpoint while orders flow, and a second one that takes over.
    async fn second_goes_on(&self, failpoints_of_first: &str, failpoints_of_second: &str) -> Result<()> {
        let _consumer = self.stack.consumer().start().await?;
        let first = self.producer(0, failpoints_of_first).start().await?;
        let orders = self.order(0);
        first.process().wait_for_exit(PATIENCE).await.context("the failpoint was never reached")?;
        let _second = self.producer(1, failpoints_of_second).start().await?;
        orders.await??;
        self.settled().await
    }

    async fn settled(&self) -> Result<()> {
        Sites::new(&self.stack).settled(PATIENCE).await
    }

    async fn count(&self, topic: &str, isolation: Isolation) -> Result<usize> {
        Ok(self.stack.read_topic(topic, isolation).await?.len())
    }

    /// Waits until an open transaction contains events.
    async fn events_are_uncommitted(&self) -> Result<()> {
        eventually("an open transaction", PATIENCE, async || {
            ensure!(self.count(&self.stack.topic(), Isolation::ReadUncommitted).await? > 0, "no events");
            Ok(())
        })
        .await
    }

    async fn leads_both_relays(&self, producer: &Producer) -> Result<()> {
        eventually("one producer to lead both relays", PATIENCE, async || {
            for shard in [1, 2] {
                ensure!(producer.leads_relay(shard).await?, "not of shard{shard}");
            }
            Ok(())
        })
        .await
    }

    async fn outboxes_are_empty(&self) -> Result<()> {
        eventually("empty outboxes", PATIENCE, async || {
            for shard in [1, 2] {
                let mut connection = self.stack.shard(shard).await?;
                let left: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut connection).await?;
                ensure!(left == 0, "{left} events of shard{shard}");
            }
            Ok(())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_deletes_before_its_commit_loses_events() -> Result<()> {
    must_notice(Kind::Lost, "relay::deletes-before-commit", async |scene: &Scene| {
        scene.second_goes_on(&scene.failpoints("relay::before-commit=1*off->return"), "").await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_the_progress_record_publishes_twice() -> Result<()> {
    must_notice(Kind::Duplicated, "relay::ignores-progress", async |scene: &Scene| {
        scene.second_goes_on("relay::after-commit=1*off->return", &scene.failpoints("")).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_fencing_publishes_beside_a_frozen_leader() -> Result<()> {
    must_notice(Kind::Duplicated, "relay::fences-nobody", async |scene: &Scene| {
        let _consumer = scene.stack.consumer().start().await?;
        let first = scene.producer(0, &scene.failpoints("relay::before-commit=pause")).start().await?;
        scene.leads_both_relays(&first).await?;
        let second = scene.producer(1, &scene.failpoints("")).start().await?;
        let orders = scene.order(0);
        scene.events_are_uncommitted().await?;
        first.pause();
        scene.leads_both_relays(&second).await?;
        orders.await??;
        scene.outboxes_are_empty().await?;
        first.resume();
        set_failpoint(&first.admin_url()?, "relay::before-commit", "off").await?;
        scene.settled().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_commits_offsets_outside_the_transaction_notifies_twice() -> Result<()> {
    must_notice(Kind::Duplicated, "consumer::commits-offsets-apart", async |scene: &Scene| {
        let _producer = scene.producer(0, "").start().await?;
        let failpoints = scene.failpoints("consumer::after-commit=return");
        let dying = scene.stack.consumer().env("FAILPOINTS", failpoints).start().await?;
        let orders = scene.order(0);
        dying.process().wait_for_exit(PATIENCE).await.context("the failpoint was never reached")?;
        let _living = scene.stack.consumer().start().await?;
        orders.await??;
        scene.settled().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_keeps_its_batch_across_a_rebalance_notifies_twice() -> Result<()> {
    must_notice(Kind::Duplicated, "consumer::keeps-batch-across-rebalance", async |scene: &Scene| {
        let _producer = scene.producer(0, "").start().await?;
        scene.order(0).await??;
        scene.outboxes_are_empty().await?;
        // With the mistake it collects records until a rebalance.
        let first = scene.stack.consumer().env("FAILPOINTS", scene.failpoints("")).start().await?;
        first.ready(PATIENCE).await?;
        if scene.defect.is_some() {
            let kept = async || first.process().log_since_start().contains("keeps its batch");
            eventually("a batch to keep", PATIENCE, kept).await?;
        }
        let _second = scene.stack.consumer().start().await?;
        scene.settled().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_reads_uncommitted_events_notifies_twice() -> Result<()> {
    must_notice(Kind::Duplicated, "consumer::reads-uncommitted", async |scene: &Scene| {
        let _consumer = scene.stack.consumer().env("FAILPOINTS", scene.failpoints("")).start().await?;
        let first = scene.producer(0, "relay::before-commit=pause").start().await?;
        scene.leads_both_relays(&first).await?;
        let orders = scene.order(0);
        scene.events_are_uncommitted().await?;
        if scene.defect.is_some() {
            let notifications = format!("{}.notifications", scene.stack.topic());
            eventually("a notification of an event that may yet be aborted", PATIENCE, async || {
                ensure!(scene.count(&notifications, Isolation::ReadCommitted).await? > 0, "none");
                Ok(())
            })
            .await?;
        }
        first.kill();
        let _second = scene.producer(1, "").start().await?;
        orders.await??;
        scene.settled().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_whose_jobs_are_deleted_before_the_put_are_lost() -> Result<()> {
    must_notice(Kind::Lost, "receipts::deletes-before-put", async |scene: &Scene| {
        scene.second_goes_on(&scene.failpoints("receipts::before-put=return"), "").await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_answered_before_their_commit_are_lost() -> Result<()> {
    must_notice(Kind::Lost, "writer::answers-before-commit", async |scene: &Scene| {
        let _consumer = scene.stack.consumer().start().await?;
        let first = scene.producer(0, &scene.failpoints("")).start().await?;
        first.ready(PATIENCE).await?;
        // Nothing is stored while this lock is held, so a 201 comes before the commit.
        let mut shard = scene.stack.shard(1).await?;
        let mut holding = shard.begin().await?;
        sqlx::query("LOCK TABLE orders").execute(&mut *holding).await?;
        scene.only(&first)?.place(&client::client()?, keyless(0)).await?;
        first.kill();
        // Otherwise the statements that wait for the table would run, although their client has gone.
        let waiting = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE datname = current_database() AND pid <> pg_backend_pid()";
        sqlx::query(waiting).execute(&mut *holding).await?;
        holding.rollback().await?;
        let _second = scene.producer(1, "").start().await?;
        scene.order(1).await??;
        scene.settled().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_retried_with_new_ids_is_stored_twice() -> Result<()> {
    must_notice(Kind::Duplicated, "writer::sends-again-with-new-ids", async |scene: &Scene| {
        let stack = &scene.stack;
        let _consumer = stack.consumer().start().await?;
        let way = Proxy::start(stack.postgres(1).port()).await?;
        let (direct, proxied) = (format!(":{}/", stack.postgres(1).port()), format!(":{}/", way.port()));
        let producer = scene
            .producer(0, &scene.failpoints(""))
            .env("SHARD_WRITERS", "1")
            // On a busy machine the checks below take a while, and the writer must wait for the response.
            .env("ORDER_TIMEOUT_MS", "60000")
            .env("PG_SHARD1_DSN", stack.dsn(1).replace(&direct, &proxied));
        let producer = producer.start().await?;
        producer.ready(PATIENCE).await?;
        let clients = scene.only(&producer)?;
        // The first order prepares the statement, which needs the response.
        clients.place(&client::client()?, keyless(0)).await?;
        // From here on requests are executed and their responses lost.
        way.set(Link::SwallowingAnswers);
        let order = tokio::spawn(async move { clients.place(&client::client()?, keyless(1)).await });
        eventually("the order to be stored", PATIENCE, async || {
            let mut shard = stack.shard(1).await?;
            let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&mut shard).await?;
            ensure!(stored == 2, "{stored} are stored");
            Ok(())
        })
        .await?;
        way.set(Link::Open);
        order.await??;
        scene.settled().await
    })
    .await
}

/// Returns an order of a user of the first shard, sent once. It has no key, so the writer may store it any number of
/// times.
fn keyless(number: u64) -> Plan {
    Plan {
        number,
        user_id: "alice".to_owned(),
        product_name: format!("Lamp #{number}"),
        quantity: 1,
        cents: 100,
        idempotency_key: None,
        manner: Manner::Once,
    }
}
