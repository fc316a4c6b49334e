//! Events that no consumer can read: each becomes a dead letter with its reason, blocks nothing, and can be replayed,
//! once.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Consumer, Isolation, Launch, Process, Record, Stack, eventually, tools, wait::PATIENCE};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use tokio::time::Duration;

pub fn event(number: usize) -> String {
    json!({
        "event_type": "order.created",
        "order_id": format!("00000000-0000-7000-8000-{number:012}"),
        "user_id": "alice",
        "product_name": "Keyboard",
        "quantity": 2,
        "total": 299.98,
        "status": "created",
        "shard": 1,
        "timestamp": "2026-01-02T03:04:05.678Z",
    })
    .to_string()
}

/// Sends a record to partition 0, so that a record that blocks would block the next.
pub async fn send(stack: &Stack, topic: &str, value: &[u8], headers: OwnedHeaders) -> Result<()> {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", stack.kafka().bootstrap())
        .set("message.max.bytes", "2000000")
        .create()?;
    let record = FutureRecord::to(topic).partition(0).key("alice").payload(value).headers(headers);
    producer.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error)?;
    Ok(())
}

/// Returns the headers of a letter that came from partition 0 of `topic`.
pub fn letter_headers(topic: &str, offset: &str) -> OwnedHeaders {
    OwnedHeaders::new()
        .insert(Header { key: "dlq.topic", value: Some(topic) })
        .insert(Header { key: "dlq.partition", value: Some("0") })
        .insert(Header { key: "dlq.offset", value: Some(offset) })
        .insert(Header { key: "dlq.reason", value: Some("unknown to an older version") })
}

pub async fn notified(stack: &Stack) -> Result<Vec<Value>> {
    let topic = format!("{}.notifications", stack.topic());
    stack.read_topic(&topic, Isolation::ReadCommitted).await?.iter().map(orderflow_testbed::Record::json).collect()
}

/// Returns the letters in the topic, without the markers of replays.
async fn letters_in(stack: &Stack) -> Result<Vec<Record>> {
    let mut records = stack.read_topic(&format!("{}.dlq", stack.topic()), Isolation::ReadCommitted).await?;
    records.retain(|record| record.headers.contains_key("dlq.topic"));
    Ok(records)
}

/// Runs `orderflow-consumer dlq …` and returns its output, and whether it succeeded.
async fn dlq(stack: &Stack, arguments: &[&str]) -> Result<(bool, String)> {
    let folder = orderflow_testbed::folder::for_test_process()?;
    let log = folder.join(format!("dlq-{}.log", uuid::Uuid::now_v7()));
    let mut launch = Launch::new("dlq", tools::product_binary("orderflow-consumer")?, &log).argument("dlq");
    for (name, value) in stack.env().into_iter().filter(|(name, _)| name.starts_with("KAFKA_")) {
        launch = launch.env(name, value);
    }
    let process = Process::start(launch.arguments(arguments.iter().copied()))?;
    let status = process.wait_for_exit(PATIENCE).await?;
    Ok((status.success(), std::fs::read_to_string(&log)?))
}

async fn expect_notifications(stack: &Stack, count: usize, _consumer: &Consumer) -> Result<Vec<Value>> {
    eventually("the notifications", PATIENCE, async || {
        let seen = notified(stack).await?;
        ensure!(seen.len() >= count, "{} of {count}", seen.len());
        Ok(seen)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_goes_to_the_dead_letters_with_its_reason_and_blocks_nothing() -> Result<()> {
    let stack = Stack::shared().await?;
    let topic = stack.topic();
    let huge = format!("{{\"event_type\":\"order.created\",\"note\":\"{}\"}}", "x".repeat(1_040_000 - 40));
    let poison: [(&str, Vec<u8>, &str); 6] = [
        ("bad JSON", b"{\"event_type\":".to_vec(), "not the JSON of an event"),
        ("unknown type", br#"{"event_type":"order.updated"}"#.to_vec(), "unknown event_type"),
        ("wrong types", event(1).replace("\"alice\"", "17").into_bytes(), "not the JSON of an event"),
        ("a broken rule", event(2).replace(":2,", ":0,").into_bytes(), "quantity"),
        ("empty", Vec::new(), "the record has no value"),
        ("huge", huge.into_bytes(), "not the JSON of an event"),
    ];
    send(&stack, &topic, event(100).as_bytes(), OwnedHeaders::new()).await?;
    for (number, (_, value, _)) in poison.iter().enumerate() {
        send(&stack, &topic, value, OwnedHeaders::new()).await?;
        send(&stack, &topic, event(101 + number).as_bytes(), OwnedHeaders::new()).await?;
    }
    let consumer = stack.consumer().start().await?;
    let notifications = expect_notifications(&stack, poison.len() + 1, &consumer).await?;
    ensure!(notifications.len() == poison.len() + 1, "more notifications than events: {notifications:?}");

    let letters = stack.read_topic(&format!("{topic}.dlq"), Isolation::ReadCommitted).await?;
    ensure!(letters.len() == poison.len(), "{} dead letters", letters.len());
    for (number, ((name, value, reason), letter)) in poison.iter().zip(&letters).enumerate() {
        ensure!(letter.value.clone().unwrap_or_default() == *value, "{name}: the value is not as it was");
        ensure!(letter.key.as_deref() == Some("alice"), "{name}: {:?}", letter.key);
        let header = |name: &str| letter.headers.get(name).cloned().unwrap_or_default();
        ensure!(header("dlq.reason").contains(reason), "{name}: {}", header("dlq.reason"));
        ensure!(header("dlq.topic") == topic && header("dlq.partition") == "0", "{name}: {:?}", letter.headers);
        ensure!(header("dlq.offset") == (1 + 2 * number).to_string(), "{name}: {:?}", letter.headers);
    }

    let (listed, list) = dlq(&stack, &["list"]).await?;
    ensure!(listed && list.contains("unknown event_type") && list.contains(&topic), "{list}");
    let (shown, letter) = dlq(&stack, &["show", "0", &letters[1].offset.to_string()]).await?;
    ensure!(shown && letter.contains(r#"{"event_type":"order.updated"}"#), "{letter}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_letters_are_processed_and_poison_comes_back() -> Result<()> {
    let stack = Stack::shared().await?;
    let (topic, letters) = (stack.topic(), format!("{}.dlq", stack.topic()));
    // Letters that an older consumer could not read and this one can: the fix is the newer consumer.
    let headers = |offset| letter_headers(&topic, offset);
    send(&stack, &letters, event(1).as_bytes(), headers("0")).await?;
    send(&stack, &letters, b"still poison", headers("1")).await?;
    send(&stack, &letters, event(2).as_bytes(), headers("2")).await?;
    let consumer = stack.consumer().start().await?;

    let (replayed, output) = dlq(&stack, &["replay"]).await?;
    ensure!(replayed, "{output}");
    expect_notifications(&stack, 2, &consumer).await?;
    // A record that is still poison becomes a dead letter again, at a new place.
    eventually("the letter comes back", PATIENCE, async || {
        let count = letters_in(&stack).await?.len();
        ensure!(count == 4, "{count} letters");
        Ok(())
    })
    .await?;
    let again = letters_in(&stack).await?.pop().context("no letter")?;
    ensure!(again.value.as_deref() == Some(b"still poison".as_slice()), "{again:?}");

    let (replayed, output) = dlq(&stack, &["replay", "--limit", "1"]).await?;
    ensure!(replayed, "{output}");
    eventually("the letter comes back again", PATIENCE, async || {
        let count = letters_in(&stack).await?.len();
        ensure!(count == 5, "{count} letters");
        Ok(())
    })
    .await?;
    let seen = notified(&stack).await?;
    ensure!(seen.len() == 2, "a letter was replayed twice: {seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_replay_finds_nothing() -> Result<()> {
    let stack = Stack::shared().await?;
    let (topic, letters) = (stack.topic(), format!("{}.dlq", stack.topic()));
    send(&stack, &letters, event(1).as_bytes(), letter_headers(&topic, "0")).await?;
    for _ in 0..2 {
        let (replayed, output) = dlq(&stack, &["replay"]).await?;
        ensure!(replayed, "{output}");
    }
    let replayed = stack.read_topic(&topic, Isolation::ReadCommitted).await?;
    ensure!(replayed.len() == 1, "{} events after two replays", replayed.len());
    ensure!(replayed[0].value.as_deref() == Some(event(1).as_bytes()), "{replayed:?}");
    ensure!(!replayed[0].headers.keys().any(|name| name.starts_with("dlq.")), "{:?}", replayed[0].headers);
    Ok(())
}

/// This broker forgets offsets after a minute, not after seven days. The markers in the topic remember.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_after_the_broker_forgot_its_offsets_notifies_once() -> Result<()> {
    const FORGETTING: Duration = Duration::from_mins(3);
    let stack = Stack::builder().own().forgetful().start().await?;
    let (topic, letters) = (stack.topic(), format!("{}.dlq", stack.topic()));
    send(&stack, &letters, event(1).as_bytes(), letter_headers(&topic, "0")).await?;
    let (replayed, output) = dlq(&stack, &["replay"]).await?;
    ensure!(replayed && output.contains("1 replayed"), "{output}");

    let group: BaseConsumer =
        stack.kafka().client().set("group.id", format!("{}.dlq-replay", stack.group())).create()?;
    let mut partition = TopicPartitionList::new();
    partition.add_partition(&letters, 0);
    let committed = || group.committed_offsets(partition.clone(), Duration::from_secs(10));
    ensure!(committed()?.elements()[0].offset() != Offset::Invalid, "the replay has committed nothing");
    eventually("the broker forgets the offset", FORGETTING, async || {
        let offset = committed()?.elements()[0].offset();
        ensure!(offset == Offset::Invalid, "it is {offset:?}");
        Ok(())
    })
    .await?;

    let (replayed, output) = dlq(&stack, &["replay"]).await?;
    ensure!(replayed && output.contains("nothing to replay"), "{output}");
    send(&stack, &letters, event(2).as_bytes(), letter_headers(&topic, "1")).await?;
    let (listed, output) = dlq(&stack, &["list"]).await?;
    ensure!(listed && output.matches("unknown to an older version").count() == 1, "{output}");
    let (replayed, output) = dlq(&stack, &["replay"]).await?;
    ensure!(replayed && output.contains("1 replayed"), "{output}");
    let events = stack.read_topic(&topic, Isolation::ReadCommitted).await?;
    let events: Vec<_> = events.iter().map(Record::text).collect();
    ensure!(events == [event(1), event(2)], "{events:?}");
    let consumer = stack.consumer().start().await?;
    let seen = expect_notifications(&stack, 2, &consumer).await?;
    ensure!(seen.len() == 2, "a letter was notified twice: {seen:?}");
    Ok(())
}
