//! `orderflow-producer verify`: lost parts are found and queued again, orders in flight are left alone, and nothing
//! exists twice afterwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Consumer, Isolation, Producer, Record, Service, Stack,
    api::{Acked, Api},
    eventually,
    product::Verified,
    wait::PATIENCE,
};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};

use crate::support::{dependencies_up, expect_each_exactly_once, receipts, serving};

/// Orders of 40 users: enough for each partition to have events of several.
const ORDERS: usize = 120;

/// A slice so small that the result is combined from many.
const SMALL_SLICES: [(&str, &str); 1] = [("FAILPOINTS", "verify::orders-in-a-slice=return(14)")];

/// Returns the number of a row of the report, over both shards: `events missing`.
fn count(verified: &Verified, wanted: &str) -> Result<u64> {
    let mut part = "";
    for line in verified.output.lines() {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let (Some(second), Some(first)) = (words.pop(), words.pop()) else { continue };
        let (Ok(first), Ok(second)) = (first.parse::<u64>(), second.parse::<u64>()) else { continue };
        if ["orders", "receipts", "events", "notifications"].contains(words.first().unwrap_or(&"")) {
            part = words.remove(0);
        }
        if [vec![part], words].concat().join(" ") == wanted {
            return Ok(first + second);
        }
    }
    anyhow::bail!("no {wanted} in {}", verified.output)
}

fn expect(verified: &Verified, code: i32, counts: &[(&str, usize)]) -> Result<()> {
    ensure!(verified.status.code() == Some(code), "{}: {}", verified.status, verified.output);
    for (wanted, expected) in counts {
        let found = count(verified, wanted)?;
        ensure!(found == *expected as u64, "{found} {wanted}, not {expected}: {}", verified.output);
    }
    Ok(())
}

fn expect_requeued(verified: &Verified, receipts: usize, events: usize) -> Result<()> {
    let expected = format!("queued again: {receipts} receipts, {events} events\n");
    ensure!(verified.output.contains(&expected), "not {expected}: {}", verified.output);
    Ok(())
}

/// Returns a stack on which everything has arrived.
async fn settled() -> Result<(Stack, Producer, Consumer, Vec<Acked>)> {
    let stack = Stack::shared().await?;
    let ((producer, api), consumer) = (serving(&stack).await?, stack.consumer().start().await?);
    let acked = api.place_many(ORDERS).await?;
    expect_each_exactly_once(&stack, &acked).await?;
    Ok((stack, producer, consumer, acked))
}

async fn empty_bucket(stack: &Stack) -> Result<()> {
    let s3 = stack.s3();
    for key in receipts(stack).await? {
        s3.delete_object().bucket(stack.bucket()).key(key).send().await?;
    }
    Ok(())
}

async fn execute(stack: &Stack, statements: &'static str) -> Result<()> {
    for shard in [1, 2] {
        sqlx::raw_sql(statements).execute(&mut stack.shard(shard).await?).await?;
    }
    Ok(())
}

/// Returns the number of rows of a queue, over both shards.
async fn queued(stack: &Stack, table: &str) -> Result<i64> {
    let mut rows = 0;
    for shard in [1, 2] {
        const COUNT: &str = "SELECT CASE $1 WHEN 'outbox' THEN (SELECT count(*) FROM outbox) \
                             ELSE (SELECT count(*) FROM receipt_jobs) END";
        let count: i64 = sqlx::query_scalar(COUNT).bind(table).fetch_one(&mut stack.shard(shard).await?).await?;
        rows += count;
    }
    Ok(rows)
}

async fn published(stack: &Stack) -> Result<()> {
    eventually("the events to be published", PATIENCE, async || {
        let waiting = queued(stack, "outbox").await?;
        ensure!(waiting == 0, "{waiting} wait");
        Ok(())
    })
    .await
}

/// Commits the ends of the logs for the stack's group, as `kafka-consumer-groups.sh --reset-offsets --to-latest` does.
fn skip_to_the_end(stack: &Stack) -> Result<()> {
    skip_beyond_the_end(stack, 0)
}

/// Commits offsets beyond the ends, as after a log has lost its end.
fn skip_beyond_the_end(stack: &Stack, by: i64) -> Result<()> {
    let topic = stack.topic();
    let group: BaseConsumer = stack.kafka().client().set("group.id", stack.group()).create()?;
    let metadata = group.fetch_metadata(Some(&topic), Duration::from_secs(5))?;
    let mut ends = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
        let (_, end) = group.fetch_watermarks(&topic, partition.id(), Duration::from_secs(5))?;
        ends.add_partition_offset(&topic, partition.id(), Offset::Offset(end + by))?;
    }
    Ok(group.commit(&ends, CommitMode::Sync)?)
}

async fn write_dead_letter(stack: &Stack, event: &Record) -> Result<()> {
    let (topic, letters) = (stack.topic(), format!("{}.dlq", stack.topic()));
    let (partition, offset) = (event.partition.to_string(), event.offset.to_string());
    let headers = OwnedHeaders::new()
        .insert(Header { key: "dlq.topic", value: Some(&topic) })
        .insert(Header { key: "dlq.partition", value: Some(&partition) })
        .insert(Header { key: "dlq.offset", value: Some(&offset) });
    let producer: FutureProducer = stack.kafka().client().create()?;
    let letter = FutureRecord::<str, [u8]>::to(&letters).headers(headers);
    producer.send(letter, Duration::from_secs(30)).await.map_err(|(error, _)| error)?;
    Ok(())
}

/// Deletes the topics, as a person might who wants to start over.
async fn delete_topics(stack: &Stack) -> Result<()> {
    let topics = ["", ".notifications", ".dlq", ".relay"].map(|suffix| format!("{}{suffix}", stack.topic()));
    let names = topics.each_ref().map(String::as_str);
    let admin: AdminClient<DefaultClientContext> = stack.kafka().client().create()?;
    for deleted in admin.delete_topics(&names, &AdminOptions::new()).await? {
        deleted.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
    }
    eventually("the topics to be gone", PATIENCE, async || {
        let client: BaseConsumer = stack.kafka().client().create()?;
        let metadata = client.fetch_metadata(None, Duration::from_secs(5))?;
        let left = metadata.topics().iter().find(|topic| names.contains(&topic.name()));
        ensure!(left.is_none(), "{:?} still exists", left.map(rdkafka::metadata::MetadataTopic::name));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_system_has_nothing_to_report() -> Result<()> {
    let (stack, _producer, _consumer, _) = settled().await?;
    let counts = [
        ("orders", ORDERS),
        ("receipts stored", ORDERS),
        ("events published", ORDERS),
        ("events deleted", 0),
        ("events of no order", 0),
        ("notifications sent", ORDERS),
    ];
    expect(&stack.verify(&[]).await?, 0, &counts)?;
    let repaired = stack.verify(&["--repair"]).await?;
    expect(&repaired, 0, &counts)?;
    expect_requeued(&repaired, 0, 0)?;
    let slices = stack.verify_with(&SMALL_SLICES, &[]).await?;
    expect(&slices, 0, &counts)?;
    let recent = stack.verify(&["--since", "0s"]).await?;
    expect(&recent, 0, &[("orders", 0)])
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_of_an_emptied_bucket_are_written_again() -> Result<()> {
    let (stack, _producer, _consumer, acked) = settled().await?;
    empty_bucket(&stack).await?;
    expect(&stack.verify(&[]).await?, 1, &[("receipts missing", ORDERS), ("events published", ORDERS)])?;
    let repaired = stack.verify_with(&SMALL_SLICES, &["--repair", "--only", "receipts"]).await?;
    expect(&repaired, 0, &[("receipts missing", ORDERS)])?;
    expect_requeued(&repaired, ORDERS, 0)?;
    expect_each_exactly_once(&stack, &acked).await?;
    expect(&stack.verify(&[]).await?, 0, &[("receipts stored", ORDERS)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_of_another_length_is_written_again() -> Result<()> {
    let (stack, producer, _consumer, acked) = settled().await?;
    // A user with several receipts and one with a single receipt are checked in different ways.
    let single = Api::new(&producer)?.place("alone", None).await?.acked(0)?;
    let acked = [acked, vec![single.clone()]].concat();
    expect_each_exactly_once(&stack, &acked).await?;
    for order in [&single, &acked[0]] {
        let put = stack.s3().put_object().bucket(stack.bucket()).key(&order.receipt).body(b"cut".to_vec().into());
        put.send().await?;
    }
    expect(&stack.verify(&["--repair"]).await?, 0, &[("receipts different", 2), ("receipts missing", 0)])?;
    eventually("the receipts are whole again", PATIENCE, async || {
        expect(&stack.verify(&[]).await?, 0, &[("receipts stored", ORDERS + 1)])
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_bucket_is_an_error_and_not_a_lost_receipt() -> Result<()> {
    let (stack, _producer, _consumer, _) = settled().await?;
    empty_bucket(&stack).await?;
    stack.s3().delete_bucket().bucket(stack.bucket()).send().await?;
    let verified = stack.verify(&["--repair"]).await?;
    expect(&verified, 2, &[])?;
    ensure!(verified.output.contains("is not there: run orderflow-provision"), "{}", verified.output);
    ensure!(queued(&stack, "receipt_jobs").await? == 0, "receipts were queued");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_that_is_down_is_an_error_and_not_a_lost_receipt() -> Result<()> {
    let (stack, _producer, _consumer, _) = settled().await?;
    let verified = stack.verify_with(&[("S3_ENDPOINT", "http://127.0.0.1:1")], &["--repair"]).await?;
    expect(&verified, 2, &[])?;
    ensure!(verified.output.contains("S3 gave no answer"), "{}", verified.output);
    ensure!(queued(&stack, "receipt_jobs").await? == 0, "receipts were queued");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_down_is_named_and_nothing_is_queued() -> Result<()> {
    let (stack, _producer, _consumer, _) = settled().await?;
    empty_bucket(&stack).await?;
    let unreachable = "postgres://postgres@127.0.0.1:1/orders?sslmode=disable";
    let verified = stack.verify_with(&[("PG_SHARD2_DSN", unreachable)], &["--repair"]).await?;
    expect(&verified, 2, &[])?;
    ensure!(verified.output.contains("shard2"), "shard2 is not named: {}", verified.output);
    ensure!(queued(&stack, "receipt_jobs").await? == 0, "half of a report was acted on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_never_published_is_found_and_published_once() -> Result<()> {
    let (stack, producer, _consumer, mut acked) = settled().await?;
    execute(
        &stack,
        "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER forget BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION forget()",
    )
    .await?;
    let api = Api::new(&producer)?;
    let forgotten = [api.place("alice", None).await?.acked(0)?, api.place("nina", None).await?.acked(0)?];
    execute(&stack, "DROP TRIGGER forget ON outbox").await?;
    acked.extend(forgotten.clone());
    acked.extend(api.place_many(ORDERS).await?);

    let found = stack.verify(&["--only", "events"]).await?;
    expect(&found, 1, &[("events missing", 2), ("notifications without event", 2), ("events deleted", 0)])?;
    for order in &forgotten {
        ensure!(found.output.contains(&order.id), "{} is not named: {}", order.id, found.output);
    }
    // Two repairs at once: one of them may be refused, but neither publishes an event twice.
    let (one, two) = tokio::try_join!(stack.verify(&["--repair"]), stack.verify(&["--repair"]))?;
    ensure!(one.status.success() || two.status.success(), "{} {}", one.output, two.output);
    expect_each_exactly_once(&stack, &acked).await?;
    expect(&stack.verify(&["--repair"]).await?, 0, &[("events published", acked.len()), ("events twice", 0)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_is_repaired_only_with_renotify() -> Result<()> {
    let (stack, producer, consumer, acked) = settled().await?;
    producer.stop().await?;
    consumer.stop().await?;
    delete_topics(&stack).await?;
    let without = stack.verify(&["--repair"]).await?;
    expect(&without, 2, &[])?;
    ensure!(without.output.contains("does not exist: run orderflow-provision"), "{}", without.output);
    stack.provision().await?;

    let left_alone = stack.verify(&["--repair"]).await?;
    expect(
        &left_alone,
        1,
        &[("events deleted", ORDERS), ("events expired", 0), ("events missing", 0), ("receipts stored", ORDERS)],
    )?;
    expect_requeued(&left_alone, 0, 0)?;
    let refused = stack.verify(&["--repair", "--renotify"]).await?;
    ensure!(refused.output.contains("--since"), "all of the past was announced: {}", refused.output);
    let repaired = stack.verify_with(&SMALL_SLICES, &["--repair", "--renotify", "--since", "1h"]).await?;
    expect(&repaired, 0, &[("events deleted", ORDERS)])?;
    expect_requeued(&repaired, 0, ORDERS)?;
    ensure!(repaired.output.contains("Second notifications are possible"), "{}", repaired.output);
    let waiting = stack.verify(&["--repair", "--renotify", "--since", "1h"]).await?;
    expect(&waiting, 0, &[("events waiting", ORDERS)])?;
    expect_requeued(&waiting, 0, 0)?;

    producer.start_again().await?;
    published(&stack).await?;
    skip_beyond_the_end(&stack, 1000)?;
    let of_the_old_group = stack.verify(&["--repair"]).await?;
    expect(&of_the_old_group, 0, &[("events published", ORDERS), ("notifications waiting", ORDERS)])?;
    ensure!(of_the_old_group.output.contains("beyond the end of partitions 0, 1"), "{}", of_the_old_group.output);

    let group = format!("{}-new", stack.group());
    let _consumer = stack.consumer().env("KAFKA_GROUP_ID", &group).start().await?;
    expect_each_exactly_once(&stack, &acked).await?;
    let counts = [("events published", ORDERS), ("notifications sent", ORDERS)];
    expect(&stack.verify_with(&[("KAFKA_GROUP_ID", &group)], &[]).await?, 0, &counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_in_flight_are_not_repaired() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let mut acked = api.place_many(ORDERS).await?;
    published(&stack).await?;
    producer.stop().await?;
    // This lock of the relays keeps the events in the outbox.
    let mut relays = Vec::new();
    for shard in [1, 2] {
        let mut connection = stack.shard(shard).await?;
        sqlx::query("SELECT pg_advisory_lock(x'6f72646572666c77'::bigint)").execute(&mut connection).await?;
        relays.push(connection);
    }
    producer.start_again().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    acked.extend(Api::new(&producer)?.place_many(ORDERS).await?);

    for variables in [&[], &SMALL_SLICES[..]] {
        let verified = stack.verify_with(variables, &["--repair"]).await?;
        expect(
            &verified,
            0,
            &[
                ("orders", 2 * ORDERS),
                ("events published", ORDERS),
                ("events waiting", ORDERS),
                ("notifications waiting", 2 * ORDERS),
            ],
        )?;
        expect_requeued(&verified, 0, 0)?;
    }
    drop(relays);
    let _consumer = stack.consumer().start().await?;
    expect_each_exactly_once(&stack, &acked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn skipped_notifications_are_sent_and_dead_letters_left_alone() -> Result<()> {
    let (stack, producer, consumer, acked) = settled().await?;
    consumer.stop().await?;
    let skipped = Api::new(&producer)?.place_many(ORDERS).await?;
    let events = eventually("the events are published", PATIENCE, async || {
        let events = stack.read_topic(&stack.topic(), Isolation::ReadCommitted).await?;
        ensure!(events.len() == 2 * ORDERS, "{} events", events.len());
        Ok(events)
    })
    .await?;
    skip_to_the_end(&stack)?;
    // The last event looks as if a consumer had not been able to read it.
    let dead = events.iter().rev().find(|event| skipped.iter().any(|order| event.text().contains(&order.id)));
    write_dead_letter(&stack, dead.context("no event of the skipped orders")?).await?;

    let found = stack.verify(&[]).await?;
    let counts = [
        ("events published", 2 * ORDERS),
        ("notifications sent", ORDERS),
        ("notifications missing", ORDERS - 1),
        ("notifications dead letter", 1),
    ];
    expect(&found, 1, &counts)?;
    let repaired = stack.verify(&["--repair"]).await?;
    expect(&repaired, 0, &counts)?;
    let expected = format!("and {} events whose notifications are missing", ORDERS - 1);
    ensure!(repaired.output.contains(&expected), "{}", repaired.output);

    let _consumer = stack.consumer().start().await?;
    let topic = format!("{}.notifications", stack.topic());
    eventually("the notifications are sent", PATIENCE, async || {
        let notifications = stack.read_topic(&topic, Isolation::ReadCommitted).await?;
        ensure!(notifications.len() == acked.len() + skipped.len() - 1, "{} notifications", notifications.len());
        Ok(())
    })
    .await?;
    let after = stack.verify(&["--repair"]).await?;
    expect(
        &after,
        1,
        &[
            ("events twice", ORDERS - 1),
            ("notifications sent", 2 * ORDERS - 1),
            ("notifications missing", 0),
            ("notifications dead letter", 1),
        ],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_an_order_are_reported() -> Result<()> {
    let (stack, _producer, _consumer, acked) = settled().await?;
    // Neither the first nor the last order, between which all are checked.
    let lost = &acked[ORDERS / 2];
    for shard in [1, 2] {
        let delete = sqlx::query("DELETE FROM orders WHERE id = $1::uuid").bind(&lost.id);
        delete.execute(&mut stack.shard(shard).await?).await?;
    }
    let found = stack.verify(&["--repair"]).await?;
    expect(&found, 1, &[("orders", ORDERS - 1), ("events of no order", 1), ("notifications of no order", 1)])?;
    ensure!(found.output.contains(&lost.id), "{}", found.output);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_repair_is_refused_while_one_runs() -> Result<()> {
    let (stack, _producer, _consumer, _) = settled().await?;
    let mut other = stack.shard(2).await?;
    sqlx::query("SELECT pg_advisory_lock(x'6f72647276657269'::bigint)").execute(&mut other).await?;
    let refused = stack.verify(&["--repair"]).await?;
    expect(&refused, 2, &[])?;
    ensure!(refused.output.contains("another verify --repair works on shard2"), "{}", refused.output);
    expect(&stack.verify(&[]).await?, 0, &[("orders", ORDERS)])
}

#[tokio::test(flavor = "multi_thread")]
async fn repairs_while_orders_flow_double_nothing() -> Result<()> {
    let (stack, producer, _consumer, mut acked) = settled().await?;
    let api = Api::new(&producer)?;
    let flow = tokio::spawn(async move {
        let mut acked = Vec::new();
        for _ in 0..10 {
            acked.extend(api.place_many(500).await?);
        }
        anyhow::Ok(acked)
    });
    let mut repairs = 0;
    while !flow.is_finished() || repairs < 3 {
        let verified = stack.verify(&["--repair"]).await?;
        expect(&verified, 0, &[("events missing", 0), ("events deleted", 0), ("notifications missing", 0)])?;
        expect_requeued(&verified, 0, 0)?;
        repairs += 1;
    }
    acked.extend(flow.await??);
    expect_each_exactly_once(&stack, &acked).await
}
