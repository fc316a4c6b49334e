//! Traces, as a real OpenTelemetry Collector receives them: one order is one trace, across the queue, the outbox, Kafka
//! and S3.

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use orderflow_testbed::{
    Authority, Collector, Consumer, Isolation, Launch, Process, Producer, Record, Service, Stack,
    api::{Acked, Api},
    collector::{Kind, Span},
    eventually, folder, http,
    product::Builder,
    tools,
    wait::PATIENCE,
};
use rdkafka::message::{Header, OwnedHeaders};
use reqwest::StatusCode;

use crate::dead_letters::{event, send};

const CLIENT: (&str, &str) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");

struct World {
    stack: Stack,
    collector: Collector,
}

impl World {
    async fn start(name: &str) -> Result<Self> {
        let collector = Collector::start(folder::for_test_process()?, &format!("collector-{name}")).await?;
        Ok(Self { stack: Stack::shared().await?, collector })
    }

    /// Adds the variables that turn traces on. Spans are sent soon after they end.
    fn traced<P: Service>(&self, builder: Builder<P>) -> Builder<P> {
        let builder = builder.env("OTEL_EXPORTER_OTLP_ENDPOINT", self.collector.http_endpoint());
        builder
            .env("OTEL_BSP_SCHEDULE_DELAY", "100")
            .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    }

    async fn producer(&self) -> Result<Producer> {
        self.traced(self.stack.producer()).start().await
    }

    async fn consumer(&self) -> Result<Consumer> {
        self.traced(self.stack.consumer()).start().await
    }

    /// Waits for `count` spans with this name in this trace; `None`: in any.
    async fn spans(&self, trace: Option<&str>, name: &str, count: usize) -> Result<Vec<Span>> {
        eventually(&format!("{count} spans {name}"), PATIENCE, async || {
            let all = self.collector.spans()?;
            let is_meant = |span: &&Span| span.name == name && trace.is_none_or(|trace| span.trace_id == trace);
            let found: Vec<Span> = all.iter().filter(is_meant).cloned().collect();
            let names: Vec<_> = all.iter().map(|span| (&span.name, &span.trace_id)).collect();
            ensure!(found.len() >= count, "{names:?}");
            Ok(found)
        })
        .await
    }

    async fn span(&self, trace: &str, name: &str) -> Result<Span> {
        let spans = self.spans(Some(trace), name, 1).await?;
        ensure!(spans.len() == 1, "{spans:?}");
        spans.into_iter().next().context("no span")
    }

    async fn records(&self, topic: &str) -> Result<Vec<Record>> {
        eventually(&format!("a record in {topic}"), PATIENCE, async || {
            let records = self.stack.read_topic(topic, Isolation::ReadCommitted).await?;
            ensure!(!records.is_empty(), "it is empty");
            Ok(records)
        })
        .await
    }
}

fn traceparent((trace, span): (&str, &str)) -> String {
    format!("00-{trace}-{span}-01")
}

/// Places an order of `user` as a client with a trace of its own.
async fn place(api: &Api, user: &str, traceparent: &str) -> Result<Acked> {
    let body = serde_json::json!({"user_id": user, "product_name": "Keyboard", "quantity": 1, "price": 9.99});
    let request = api.request("POST", "/api/orders").header("traceparent", traceparent).json(&body);
    let reply = api.send(request).await?;
    ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
    reply.acked(0)
}

fn is_child(child: &Span, parent: &Span) -> Result<()> {
    ensure!(child.trace_id == parent.trace_id, "another trace: {child:?}\n{parent:?}");
    ensure!(child.parent_span_id.as_ref() == Some(&parent.span_id), "no child: {child:?}\n{parent:?}");
    Ok(())
}

fn links_to(span: &Span, other: &Span) -> Result<()> {
    let is_linked = span.links.iter().any(|(trace, id)| (trace, id) == (&other.trace_id, &other.span_id));
    ensure!(is_linked, "no link: {span:?}\n{other:?}");
    Ok(())
}

fn has(span: &Span, attributes: &[(&str, &str)]) -> Result<()> {
    for (name, value) in attributes {
        ensure!(span.attributes.get(*name).map(String::as_str) == Some(value), "{name} is not {value}: {span:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_order_is_one_trace() -> Result<()> {
    let world = World::start("one").await?;
    let template = "http://jaeger.test/trace/{trace_id}";
    let producer = world.traced(world.stack.producer()).env("TRACE_URL_TEMPLATE", template).start().await?;
    let _consumer = world.consumer().await?;
    let api = Api::new(&producer)?;
    let (topic, trace) = (world.stack.topic(), CLIENT.0);
    let notifications = format!("{topic}.notifications");
    let order = place(&api, "alice", &traceparent(CLIENT)).await?;

    let server = world.span(trace, "POST /api/orders").await?;
    ensure!(server.parent_span_id.as_deref() == Some(CLIENT.1) && server.kind == Kind::Server, "{server:?}");
    has(
        &server,
        &[("http.request.method", "POST"), ("http.route", "/api/orders"), ("http.response.status_code", "201")],
    )?;
    ensure!(server.service == "orderflow-producer", "{server:?}");
    ensure!(server.resource.get("deployment.environment.name").map(String::as_str) == Some("test"), "{server:?}");

    let insert = world.span(trace, "INSERT orders").await?;
    is_child(&insert, &server)?;
    links_to(&insert, &server)?;
    has(&insert, &[("db.system.name", "postgresql"), ("orderflow.shard", "shard1")])?;
    let wait = world.span(trace, "wait in queue").await?;
    is_child(&wait, &server)?;
    links_to(&wait, &insert)?;
    ensure!(wait.start <= insert.start && wait.start >= server.start, "{wait:?}\n{insert:?}\n{server:?}");

    let publish = world.span(trace, &format!("publish {topic}")).await?;
    is_child(&publish, &server)?;
    ensure!(publish.kind == Kind::Producer && publish.error.is_none(), "{publish:?}");
    has(&publish, &[("messaging.system", "kafka"), ("messaging.destination.name", &topic)])?;
    let sent = world.span(trace, &format!("send {topic}")).await?;
    links_to(&publish, &sent)?;
    links_to(&sent, &server)?;

    let process = world.span(trace, &format!("process {topic}")).await?;
    is_child(&process, &publish)?;
    ensure!(process.kind == Kind::Consumer && process.service == "orderflow-consumer", "{process:?}");
    has(&process, &[("messaging.consumer.group.name", &world.stack.group()), ("orderflow.order.id", &order.id)])?;
    let notify = world.span(trace, &format!("publish {notifications}")).await?;
    is_child(&notify, &process)?;

    let receipt = world.span(trace, "put receipt").await?;
    is_child(&receipt, &server)?;
    ensure!(receipt.kind == Kind::Client, "{receipt:?}");
    has(&receipt, &[("aws.s3.bucket", &world.stack.bucket()), ("orderflow.order.id", &order.id)])?;

    // What the next reader continues.
    let carried = |span: &Span| traceparent((&span.trace_id, &span.span_id));
    let published = &world.records(&topic).await?[0];
    ensure!(published.headers["traceparent"] == carried(&publish), "{published:?}");
    let notified = &world.records(&notifications).await?[0];
    ensure!(notified.headers["traceparent"] == carried(&notify), "{notified:?}");

    // The page, the metrics and the log name the trace.
    eventually("the trail to name the trace", PATIENCE, async || {
        let trail = api.get(&format!("/api/orders/{}/trail", order.id)).await?.ok()?;
        ensure!(trail["notified"]["state"] == "notified" && trail["trace_id"] == trace, "{trail}");
        Ok(())
    })
    .await?;
    ensure!(api.get("/api/config").await?.ok()?["trace_url_template"] == template, "no template");
    let metrics = metrics(&producer).await?;
    let is_exemplar = |line: &str| line.contains("/api/orders\"") && line.contains(&format!("trace_id=\"{trace}\""));
    ensure!(metrics.lines().any(is_exemplar), "no exemplar:\n{metrics}");
    Ok(())
}

async fn metrics(producer: &Producer) -> Result<String> {
    Ok(http::client().get(format!("{}/metrics", producer.admin_url()?)).send().await?.text().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_and_each_of_its_orders_link_to_one_another() -> Result<()> {
    let collector = Collector::start(folder::for_test_process()?, "collector-batch").await?;
    let world = World { stack: Stack::builder().own().start().await?, collector };
    let producer = world.traced(world.stack.producer()).env("ORDER_TIMEOUT_MS", "60000").start().await?;
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;
    let trace = |number: usize| format!("{number:032x}");
    // While the shard is frozen, the first order is with the writer and the others gather in the queue.
    world.stack.postgres(1).pause();
    let orders = (1..=20).map(|number| {
        let (api, parent) = (api.clone(), traceparent((&trace(number), CLIENT.1)));
        async move { place(&api, "alice", &parent).await }
    });
    let gathered = async {
        eventually("the orders to gather", PATIENCE, async || {
            let metrics = metrics(&producer).await?;
            ensure!(metrics.contains("orderflow_write_queue{shard=\"shard1\"} 19\n"), "not yet");
            Ok(())
        })
        .await?;
        world.stack.postgres(1).resume();
        anyhow::Ok(())
    };
    let (orders, gathered) = tokio::join!(join_all(orders), gathered);
    gathered?;
    orders.into_iter().collect::<Result<Vec<_>>>()?;

    for number in 1..=20 {
        let server = world.span(&trace(number), "POST /api/orders").await?;
        let wait = world.span(&trace(number), "wait in queue").await?;
        is_child(&wait, &server)?;
        let (_, insert) = wait.links.first().context("a wait without a link")?;
        let insert = eventually("the span of its statement", PATIENCE, async || {
            let spans = world.collector.spans()?;
            spans.into_iter().find(|span| span.span_id == *insert).context("not there yet")
        })
        .await?;
        links_to(&insert, &server)?;
    }
    let inserts = world.spans(None, "INSERT orders", 2).await?;
    let links = inserts.iter().map(|insert| insert.links.len());
    ensure!(inserts.len() == 2 && links.sum::<usize>() == 20, "{inserts:?}");
    ensure!(inserts.iter().any(|insert| has(insert, &[("db.operation.batch.size", "19")]).is_ok()), "{inserts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_links_each_part_is_a_trace_that_links_to_the_one_before() -> Result<()> {
    let world = World::start("links").await?;
    let producer = world.traced(world.stack.producer()).env("OTEL_ASYNC", "links").start().await?;
    let _consumer = world.traced(world.stack.consumer()).env("OTEL_ASYNC", "links").start().await?;
    place(&Api::new(&producer)?, "alice", &traceparent(CLIENT)).await?;
    let topic = world.stack.topic();
    let only = async |name: String| {
        let spans = world.spans(None, &name, 1).await?;
        ensure!(spans.len() == 1, "{spans:?}");
        spans.into_iter().next().context("no span")
    };
    let server = world.span(CLIENT.0, "POST /api/orders").await?;
    let (publish, process) = (only(format!("publish {topic}")).await?, only(format!("process {topic}")).await?);
    let receipt = only("put receipt".to_owned()).await?;
    let (sent, settled) = (only(format!("send {topic}")).await?, only("settle batch".to_owned()).await?);
    let steps =
        [(&publish, &server), (&process, &publish), (&receipt, &server), (&sent, &server), (&settled, &publish)];
    for (span, before) in steps {
        ensure!(span.parent_span_id.is_none() && span.trace_id != before.trace_id, "{span:?}");
        links_to(span, before)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_goes_on_after_the_relay_has_died() -> Result<()> {
    let world = World::start("relay").await?;
    let dying = world.traced(world.stack.producer()).env("FAILPOINTS", "relay::before-commit=return").start().await?;
    eventually("the first producer to lead", PATIENCE, async || {
        ensure!(dying.leads_relay(1).await?, "it does not");
        Ok(())
    })
    .await?;
    let surviving = world.producer().await?;
    surviving.ready(PATIENCE).await?;
    let _consumer = world.consumer().await?;
    place(&Api::new(&surviving)?, "alice", &traceparent(CLIENT)).await?;
    dying.process().wait_for_exit(PATIENCE).await?;

    let topic = world.stack.topic();
    let server = world.span(CLIENT.0, "POST /api/orders").await?;
    let process = world.span(CLIENT.0, &format!("process {topic}")).await?;
    let publish = world.span(CLIENT.0, &format!("publish {topic}")).await?;
    is_child(&publish, &server)?;
    is_child(&process, &publish)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_dead_letter_stays_in_its_trace() -> Result<()> {
    let world = World::start("letter").await?;
    let topic = world.stack.topic();
    let headers = |version| {
        OwnedHeaders::new()
            .insert(Header { key: "traceparent", value: Some(&traceparent(CLIENT)) })
            .insert(Header { key: "schema_version", value: Some(version) })
    };
    send(&world.stack, &topic, event(1).as_bytes(), headers("9")).await?;
    let consumer = world.consumer().await?;
    let name = format!("process {topic}");
    let failed = world.span(CLIENT.0, &name).await?;
    ensure!(failed.error.as_ref().is_some_and(|reason| reason.contains("schema_version")), "{failed:?}");
    let letter = world.span(CLIENT.0, &format!("publish {topic}.dlq")).await?;
    is_child(&letter, &failed)?;
    let log = consumer.process().log_since_start();
    let line = log.lines().find(|line| line.contains("event unreadable")).context("no line about the letter")?;
    let ids = format!("{{\"trace_id\":\"{}\",\"span_id\":\"{}\",", failed.trace_id, failed.span_id);
    ensure!(line.starts_with(&ids), "{line}");

    let producer = world.traced(world.stack.producer()).env("DEAD_LETTER_REPLAY", "true").start().await?;
    let api = Api::new(&producer)?;
    eventually("the letter to be listed", PATIENCE, async || {
        let letters = api.dead_letters("").await?;
        ensure!(letters["waiting"] == 1, "{letters}");
        Ok(())
    })
    .await?;
    ensure!(api.replayed(0).await? == 1, "nothing was replayed");
    for process in world.spans(Some(CLIENT.0), &name, 2).await? {
        ensure!(process.parent_span_id.as_deref() == Some(CLIENT.1), "{process:?}");
    }
    Ok(())
}

/// The orders are answered although nobody takes their spans, and the lost spans are counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_is_down_costs_spans_and_no_order() -> Result<()> {
    let world = World::start("hangs").await?;
    let timeout = ("OTEL_EXPORTER_OTLP_TIMEOUT", "500");
    let producer = world.traced(world.stack.producer()).env("OTEL_BSP_MAX_QUEUE_SIZE", "32").env(timeout.0, timeout.1);
    let producer = producer.start().await?;
    let api = Api::new(&producer)?;
    let dropped = async || {
        let metrics = metrics(&producer).await?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("orderflow_spans_dropped_total "));
        Ok::<_, anyhow::Error>(line.context("no metric")?.parse::<u64>()?)
    };
    ensure!(dropped().await? == 0, "spans were dropped at the start");

    world.collector.pause();
    api.place_many(200).await?;
    let while_it_hangs = eventually("spans to be dropped", PATIENCE, async || {
        let count = dropped().await?;
        ensure!(count > 0, "none");
        Ok(count)
    })
    .await?;
    world.collector.resume();
    world.collector.kill();
    api.place_many(200).await?;
    eventually("more spans to be dropped", PATIENCE, async || {
        let count = dropped().await?;
        ensure!(count > while_it_hangs, "{count}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_not_sampled_leaves_no_span() -> Result<()> {
    let world = World::start("sampled").await?;
    let producer = world.traced(world.stack.producer()).env("OTEL_TRACES_SAMPLER", "parentbased_always_off");
    let producer = producer.start().await?;
    let _consumer = world.consumer().await?;
    let api = Api::new(&producer)?;
    let silent = api.place("alice", None).await?.acked(0)?;
    api.receipt_stored(&silent.id).await?;
    // A client that records its trace wants these spans as well. Once they are there, those of the first would be.
    place(&api, "alice", &traceparent(CLIENT)).await?;
    world.span(CLIENT.0, &format!("process {}", world.stack.topic())).await?;
    world.span(CLIENT.0, "put receipt").await?;
    let others: Vec<_> = world.collector.spans()?.into_iter().filter(|span| span.trace_id != CLIENT.0).collect();
    ensure!(others.is_empty(), "{others:?}");
    Ok(())
}

/// A value that cannot work ends the program with the name of its variable, and shows no password.
#[tokio::test(flavor = "multi_thread")]
async fn a_setting_of_traces_that_cannot_work_is_named() -> Result<()> {
    let stack = Stack::shared().await?;
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://id:gl-secret@collector.test"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.test?token=gl-secret"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/ca.crt"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/no/such/key"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ] {
        for (program, settings) in [("orderflow-producer", stack.env()), ("orderflow-consumer", stack.env())] {
            let log = folder::log(folder::for_test_process()?, &format!("refused-{program}-{name}"))?;
            let launch = Launch::new("refused", tools::product_binary(program)?, log);
            let given = [endpoint, (name, value), ("PORT", "0"), ("ADMIN_PORT", "0")];
            let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let launch =
                settings.into_iter().chain(given).fold(launch, |launch, (name, value)| launch.env(name, value));
            let process = Process::start(launch)?;
            let status = process.wait_for_exit(PATIENCE).await?;
            let log = process.log_since_start();
            ensure!(!status.success() && log.contains(name) && !log.contains("gl-secret"), "{program} {name}: {log}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_reach_a_collector_that_requires_tls_and_a_certificate() -> Result<()> {
    let folder = folder::for_test_process()?;
    let authority = Authority::new("a company")?;
    let collector = Collector::start_secured(folder, "collector-tls", &authority.loopback("collector")?).await?;
    let world = World { stack: Stack::shared().await?, collector };
    let own = authority.client("client", None)?;
    let [certificate, key, ca] = ["client.pem", "client.key", "collector-ca.pem"].map(|name| folder.join(name));
    own.write(&certificate, &key)?;
    std::fs::write(&ca, authority.pem())?;
    let file = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let secured = |builder: Builder<Producer>| {
        world
            .traced(builder)
            .env("OTEL_EXPORTER_OTLP_CERTIFICATE", file(&ca))
            .env("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", file(&certificate))
            .env("OTEL_EXPORTER_OTLP_CLIENT_KEY", file(&key))
            .env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    };
    let producer = secured(world.stack.producer()).start().await?;
    place(&Api::new(&producer)?, "alice", &traceparent(CLIENT)).await?;
    world.span(CLIENT.0, "POST /api/orders").await.map(drop)
}
