//! The rate at which each worker drains a backlog, beside the two halves of its work alone, done in the simplest way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::primitives::ByteStream;
use futures_util::{StreamExt, future::try_join_all, stream};
use orderflow_core::{OrderCreated, event::header};
use orderflow_testbed::Service;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer},
};
use sqlx::{Connection, FromRow, Row, postgres::PgRow};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    Effort,
    backing::{Backing, NO_S3, PATIENCE, Reach, SHARDS_ONLY, TOPIC, metric},
    cost::{PARTS, Processes},
    post,
    report::Report,
    series::Series,
    usage,
};

/// Events in a backlog, of both shards.
const EVENTS: i64 = 60_000;
/// Receipts in a backlog, of both shards.
const RECEIPTS: i64 = 8_000;
/// The relay's batch.
const BATCH: usize = 4000;
/// PUTs in flight in a producer: 32 for each shard.
const IN_FLIGHT: usize = 64;
/// The topic to which yardsticks write.
const COPIES: &str = "bench.copies";
const PROGRESS: &str = "bench.progress";
const BUCKET: &str = "bench";

/// The columns that a relay reads.
#[derive(Debug, Clone)]
struct Event {
    seq: i64,
    event_id: Uuid,
    user_id: String,
    payload: Vec<u8>,
    traceparent: String,
}

impl FromRow<'_, PgRow> for Event {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            seq: row.try_get("seq")?,
            event_id: row.try_get("event_id")?,
            user_id: row.try_get("user_id")?,
            payload: row.try_get("payload")?,
            traceparent: row.try_get("traceparent")?,
        })
    }
}

pub async fn measure(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    let events = save_a_backlog(backing, effort).await?;
    make_topics(backing).await?;
    report.section(
        "Draining a backlog",
        "Each worker alone, on a backlog that was there before it started. The yardsticks do one half of its work, with nothing around it: \
         no exactly-once, no order, no retries.",
    );
    report.head(&["", "per second", "the worker over it"]);
    let relay = relay(backing, effort, &events, report).await?;
    let consumer = consumer(backing, effort, report).await?;
    receipts(backing, effort, report).await?;
    report.head(&["CPU per event while the relay drains", "µs"]);
    for (part, series) in PARTS.iter().zip(&relay.cpu).take(3) {
        report.row([(*part).to_owned(), series.to_string()]);
    }
    report.head(&["resident at most while it drains", "MiB"]);
    for (part, series) in [("producer, its relays", relay.resident), ("consumer", consumer)] {
        report.row([part.to_owned(), series.to_string()]);
    }
    Ok(())
}

/// Saves a backlog of real orders, whose events and receipts wait, so that each round begins with the same one.
async fn save_a_backlog(backing: &Backing, effort: Effort) -> Result<[Vec<Event>; 2]> {
    backing.empty().await?;
    let producer = backing.producer(SHARDS_ONLY).await?;
    while backing.count("SELECT count(*) FROM outbox").await? < EVENTS {
        post::post(&producer.url()?, 64, 0, effort.length).await?;
    }
    drop(producer);
    backing
        .execute(
            "DROP TABLE IF EXISTS saved_outbox, saved_jobs; \
             CREATE TABLE saved_outbox AS SELECT * FROM outbox ORDER BY seq LIMIT 30000; \
             CREATE TABLE saved_jobs AS SELECT order_id FROM receipt_jobs ORDER BY order_id LIMIT 4000; \
             TRUNCATE outbox, receipt_jobs",
        )
        .await?;
    let mut events = [Vec::new(), Vec::new()];
    for (events, mut connection) in events.iter_mut().zip(backing.connect().await?) {
        const SAVED: &str = "SELECT seq, event_id, user_id, payload, traceparent FROM saved_outbox ORDER BY seq";
        *events = sqlx::query_as(SAVED).fetch_all(&mut connection).await.context("read the backlog")?;
    }
    Ok(events)
}

async fn restore_events(backing: &Backing) -> Result<()> {
    backing
        .execute(
            "TRUNCATE outbox, receipt_jobs; \
             INSERT INTO outbox (event_id, order_id, user_id, payload, traceparent, created_at) \
             SELECT event_id, order_id, user_id, payload, traceparent, created_at FROM saved_outbox ORDER BY seq",
        )
        .await?;
    backing.execute("VACUUM (ANALYZE) outbox").await?;
    backing.execute("CHECKPOINT").await
}

/// The costs of a producer's relays.
#[derive(Default)]
struct Taken {
    /// The CPU of each part, in µs per event.
    cpu: [Series; 5],
    /// The memory of the producer, in MiB.
    resident: Series,
}

async fn relay(backing: &Backing, effort: Effort, events: &[Vec<Event>; 2], report: &mut Report) -> Result<Taken> {
    let count = events.iter().map(Vec::len).sum::<usize>() as f64;
    let (mut ours, mut rows, mut transactions) = <(Series, Series, Series)>::default();
    let mut halves = Series::default();
    let mut taken = Taken::default();
    for round in 0..effort.rounds {
        restore_events(backing).await?;
        let producer = backing.producer(NO_S3).await?;
        let processes = Processes::new(backing, &backing.postgres, vec![producer.pid()], Vec::new());
        let before = processes.used()?;
        ours.push(drained(&producer.admin_url()?, "orderflow_relay_events_total", Some(count)).await?);
        processes.add_since(&before, count, &mut taken.cpu)?;
        taken.resident.push(usage::resident_at_most(producer.pid())?);
        drop(producer);

        restore_events(backing).await?;
        let began = Instant::now();
        try_join_all(backing.connect().await?.into_iter().map(select_and_delete)).await?;
        let in_shards = began.elapsed();
        rows.push(count / in_shards.as_secs_f64());

        let publish = events.iter().enumerate().map(|(shard, events)| {
            let (client, events) = (backing.kafka.client(), events.clone());
            tokio::task::spawn_blocking(move || publish(client, &format!("bench-{round}-{shard}"), &events))
        });
        let elapsed: Vec<_> = try_join_all(publish).await.context("publish")?.into_iter().collect::<Result<_>>()?;
        let in_kafka = elapsed.into_iter().max().unwrap_or_default();
        transactions.push(count / in_kafka.as_secs_f64());
        halves.push(count / (in_shards + in_kafka).as_secs_f64());
    }
    report.row(["**relay**, events".to_owned(), ours.to_string(), String::new()]);
    report.row(["SELECT and DELETE of the same rows".to_owned(), rows.to_string(), ours.over(&rows).to_string()]);
    let over = ours.over(&transactions).to_string();
    report.row(["librdkafka transactions of the same bytes".to_owned(), transactions.to_string(), over]);
    let over = ours.over(&halves).to_string();
    report.row(["the two, one after the other".to_owned(), halves.to_string(), over]);
    Ok(taken)
}

async fn select_and_delete(mut connection: sqlx::PgConnection) -> Result<()> {
    loop {
        const SELECT: &str = "SELECT seq, event_id, user_id, payload, traceparent FROM outbox ORDER BY seq LIMIT $1";
        let batch: Vec<Event> = sqlx::query_as(SELECT).bind(BATCH as i64).fetch_all(&mut connection).await?;
        if batch.is_empty() {
            return Ok(connection.close().await?);
        }
        let seqs: Vec<i64> = batch.iter().map(|event| event.seq).collect();
        sqlx::query("DELETE FROM outbox WHERE seq = ANY($1)").bind(seqs).execute(&mut connection).await?;
    }
}

/// Makes the relay's transactions without the relay. Returns how long they took, without the time to set up the
/// producer.
fn publish(mut config: ClientConfig, transactional_id: &str, events: &[Event]) -> Result<Duration> {
    config.set("transactional.id", transactional_id).set("acks", "all").set("compression.type", "lz4");
    config.set("linger.ms", "1").set("batch.num.messages", "10000").set("partitioner", "murmur2_random");
    let producer: BaseProducer = config.create().context("create a producer")?;
    producer.init_transactions(PATIENCE).context("init_transactions")?;
    let began = Instant::now();
    for batch in events.chunks(BATCH) {
        producer.begin_transaction()?;
        for event in batch {
            let event_id = event.event_id.hyphenated().to_string();
            let headers = OwnedHeaders::new_with_capacity(3)
                .insert(Header { key: header::EVENT_ID, value: Some(&event_id) })
                .insert(Header { key: header::SCHEMA_VERSION, value: Some(OrderCreated::SCHEMA_VERSION) })
                .insert(Header { key: header::TRACEPARENT, value: Some(&event.traceparent) });
            let record = BaseRecord::to(COPIES).key(event.user_id.as_str()).payload(event.payload.as_slice());
            producer.send(record.headers(headers)).map_err(|(error, _)| error)?;
        }
        let ids: Vec<Uuid> = batch.iter().map(|event| event.event_id).collect();
        let progress = serde_json::to_vec(&ids)?;
        producer
            .send(BaseRecord::to(PROGRESS).key("shard").payload(progress.as_slice()))
            .map_err(|(error, _)| error)?;
        deliver(&producer);
        producer.commit_transaction(PATIENCE)?;
    }
    Ok(began.elapsed())
}

/// Delivers all messages. rdkafka's own flush polls for 100 ms while any are in flight.
fn deliver(producer: &BaseProducer<DefaultProducerContext>) {
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::ZERO);
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Measures the consumer, and returns the most memory that it used, in MiB.
async fn consumer(backing: &Backing, effort: Effort, report: &mut Report) -> Result<Series> {
    let (mut ours, mut copied, mut read, mut resident) = <(Series, Series, Series, Series)>::default();
    for round in 0..effort.rounds {
        let consumer = backing.consumer(&format!("drain-{round}")).await?;
        ours.push(drained(&consumer.admin_url()?, "orderflow_consumer_events_total", None).await?);
        resident.push(usage::resident_at_most(consumer.pid())?);
        drop(consumer);
        for (copy, series) in [(true, &mut copied), (false, &mut read)] {
            let client = backing.kafka.client();
            series.push(tokio::task::spawn_blocking(move || consume(client, copy)).await.context("consume")??);
        }
    }
    report.row(["**consumer**, events".to_owned(), ours.to_string(), String::new()]);
    let over = ours.over(&copied).to_string();
    report.row(["librdkafka: consume and produce, no transactions".to_owned(), copied.to_string(), over]);
    report.row(["librdkafka: consume only".to_owned(), read.to_string(), ours.over(&read).to_string()]);
    Ok(resident)
}

/// Reads all events from the first on, and writes each to another topic if `copy`. Returns events per second.
fn consume(mut config: ClientConfig, copy: bool) -> Result<f64> {
    let mut writing = config.clone();
    writing.set("enable.idempotence", "true").set("acks", "all").set("compression.type", "lz4").set("linger.ms", "1");
    let producer: BaseProducer = writing.create().context("create a producer")?;
    config.set("group.id", "bench").set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    config.set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().context("create a consumer")?;
    let metadata = consumer.fetch_metadata(Some(TOPIC), PATIENCE)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(TOPIC, partition as i32, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let (mut began, mut count, mut ended) = (None, 0_u32, 0);
    while ended < partitions {
        match consumer.poll(Duration::from_secs(10)).context("nothing was read for 10 s")? {
            Ok(record) => {
                began.get_or_insert_with(Instant::now);
                count += 1;
                if copy {
                    let (key, value) = (record.key().unwrap_or_default(), record.payload().unwrap_or_default());
                    let mut outgoing = BaseRecord::to(COPIES).partition(record.partition()).key(key).payload(value);
                    // The queue is full, so wait for messages in flight.
                    while let Err((_, back)) = producer.send(outgoing) {
                        outgoing = back;
                        producer.poll(Duration::from_millis(1));
                    }
                    producer.poll(Duration::ZERO);
                }
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => return Err(error).context("read the events"),
        }
    }
    deliver(&producer);
    let began = began.context("no event was read")?;
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

async fn receipts(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    let s3 = backing.s3.s3();
    // An earlier part may have created it.
    let _ = s3.create_bucket().bucket(BUCKET).send().await;
    let mut keys = Vec::new();
    for mut connection in backing.connect().await? {
        const KEYS: &str = "SELECT receipt_s3_key FROM saved_jobs JOIN orders ON orders.id = order_id";
        let of_shard: Vec<String> = sqlx::query_scalar(KEYS).fetch_all(&mut connection).await?;
        keys.extend(of_shard);
    }
    ensure!(keys.len() as i64 == RECEIPTS, "{} receipts were saved", keys.len());
    // As long as a receipt.
    let text: Arc<[u8]> = vec![b'x'; 330].into();
    let (mut ours, mut bare) = <(Series, Series)>::default();
    for _ in 0..effort.rounds {
        backing.execute("TRUNCATE outbox, receipt_jobs").await?;
        let restore = "INSERT INTO receipt_jobs (order_id, available_at) SELECT order_id, now() FROM saved_jobs";
        backing.execute(restore).await?;
        backing.execute("VACUUM (ANALYZE) receipt_jobs").await?;
        let producer = backing.producer(Reach { kafka: false, s3: true }).await?;
        ours.push(drained(&producer.admin_url()?, "orderflow_receipts_stored_total", Some(RECEIPTS as f64)).await?);
        drop(producer);

        let began = Instant::now();
        let mut puts = stream::iter(&keys)
            .map(|key| {
                let body = ByteStream::from(text.to_vec());
                s3.put_object().bucket(BUCKET).key(key).content_type("text/plain").body(body).send()
            })
            .buffer_unordered(IN_FLIGHT);
        while let Some(put) = puts.next().await {
            put.context("PUT an object")?;
        }
        bare.push(keys.len() as f64 / began.elapsed().as_secs_f64());
    }
    report.row(["**receipts**".to_owned(), ours.to_string(), String::new()]);
    report.row([
        "PUTs of a bare client, 64 in flight as well".to_owned(),
        bare.to_string(),
        ours.over(&bare).to_string(),
    ]);
    Ok(())
}

/// Measures how fast a counter grows, from its first change to `total`, or until it has stopped changing.
async fn drained(admin_url: &str, counter: &str, total: Option<f64>) -> Result<f64> {
    const STANDSTILL: Duration = Duration::from_secs(2);
    let began = Instant::now();
    let mut first: Option<(Instant, f64)> = None;
    let mut last = (Instant::now(), 0.0);
    loop {
        ensure!(began.elapsed() < PATIENCE, "{counter} is still at {}", last.1);
        let (now, count) = (Instant::now(), metric(admin_url, counter).await?);
        if count > last.1 {
            first.get_or_insert((now, count));
            last = (now, count);
        }
        let done = match total {
            Some(total) => count + 0.5 > total,
            None => first.is_some() && last.0.elapsed() > STANDSTILL,
        };
        if let (true, Some((since, count))) = (done, first) {
            return Ok((last.1 - count) / (last.0 - since).as_secs_f64());
        }
        sleep(Duration::from_millis(10)).await;
    }
}

async fn make_topics(backing: &Backing) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = backing.kafka.client().create().context("create an admin client")?;
    let topics =
        [NewTopic::new(COPIES, 6, TopicReplication::Fixed(1)), NewTopic::new(PROGRESS, 1, TopicReplication::Fixed(1))];
    admin.create_topics(&topics, &AdminOptions::new()).await.context("create the topics")?;
    Ok(())
}
