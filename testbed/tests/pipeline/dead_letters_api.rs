//! Dead letters over the producer's API: listed in pages, and replayed once each, where that is allowed.

use anyhow::{Result, ensure};
use futures_util::future::join;
use orderflow_testbed::{Isolation, Producer, Service, Stack, api::Api, eventually, wait::PATIENCE};
use serde_json::{Value, json};

use crate::dead_letters::{event, letter_headers, notified, send};

/// Starts a producer that may replay, with a client of it.
async fn replaying(stack: &Stack) -> Result<(Producer, Api)> {
    let producer = stack.producer().env("DEAD_LETTER_REPLAY", "true").start().await?;
    let api = Api::new(&producer)?;
    Ok((producer, api))
}

/// Writes letters that an older consumer could not read and this one can.
async fn write_letters(stack: &Stack, count: usize) -> Result<()> {
    let topic = format!("{}.dlq", stack.topic());
    for number in 0..count {
        let headers = letter_headers(&stack.topic(), &number.to_string());
        send(stack, &topic, event(number).as_bytes(), headers).await?;
    }
    Ok(())
}

fn offsets(list: &Value) -> Vec<u64> {
    let letters = list["dead_letters"].as_array().expect("a list");
    letters.iter().map(|letter| letter["offset"].as_u64().expect("an offset")).collect()
}

/// Returns the ids of the orders whose events are on the topic, oldest first.
async fn events(stack: &Stack) -> Result<Vec<String>> {
    let records = stack.read_topic(&stack.topic(), Isolation::ReadCommitted).await?;
    records
        .iter()
        .map(|record| Ok(record.json::<Value>()?["order_id"].as_str().unwrap_or_default().to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_listed_with_its_reason_source_and_value() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = replaying(&stack).await?;
    let empty = api.dead_letters("").await?;
    ensure!(empty["dead_letters"] == json!([]) && empty["total"] == 0 && empty["next_before"].is_null(), "{empty}");

    let _consumer = stack.consumer().start().await?;
    let long = format!("{{{}", "ä".repeat(5_000));
    for value in [br#"{"event_type":"order.updated"}"#.as_slice(), &[0xff, b'{'], long.as_bytes()] {
        send(&stack, &stack.topic(), value, rdkafka::message::OwnedHeaders::new()).await?;
    }
    let list = eventually("three dead letters", PATIENCE, async || {
        let list = api.dead_letters("").await?;
        ensure!(list["total"] == 3, "{list}");
        Ok(list)
    })
    .await?;
    ensure!(list["waiting"] == 3 && list["complete"] == true && list["replay"] == true, "{list}");
    let letters = list["dead_letters"].as_array().expect("a list");
    let newest_first: Vec<_> = letters.iter().map(|letter| letter["source_offset"].clone()).collect();
    ensure!(newest_first == [2, 1, 0], "{list}");

    let oldest = &letters[2];
    ensure!(oldest["reason"] == r#"unknown event_type "order.updated""#, "{oldest}");
    ensure!(oldest["source_topic"] == stack.topic() && oldest["source_partition"] == 0, "{oldest}");
    ensure!(oldest["key"] == "alice" && oldest["waiting"] == true, "{oldest}");
    ensure!(oldest["value"] == r#"{"event_type":"order.updated"}"# && oldest["value_bytes"] == 30, "{oldest}");
    ensure!(oldest["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{oldest}");
    ensure!(letters[1]["value"] == "\u{fffd}{", "{}", letters[1]);
    let cut = letters[0]["value"].as_str().unwrap_or_default();
    ensure!(long.starts_with(cut) && (2_000..=2_048).contains(&cut.len()), "{} bytes", cut.len());
    ensure!(letters[0]["value_bytes"] == long.len(), "{}", letters[0]["value_bytes"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_one_another_to_the_oldest_letter() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = replaying(&stack).await?;
    write_letters(&stack, 5).await?;
    let (mut seen, mut query) = (Vec::new(), "?limit=2".to_owned());
    let mut pages = 0;
    loop {
        let page = api.dead_letters(&query).await?;
        ensure!(page["total"] == 5 && page["waiting"] == 5, "{page}");
        seen.extend(offsets(&page));
        pages += 1;
        let Some(before) = page["next_before"].as_u64() else { break };
        query = format!("?limit=2&before={before}");
    }
    ensure!(seen == [4, 3, 2, 1, 0] && pages == 3, "{pages} pages: {seen:?}");

    for (query, parameter) in
        [("?limit=0", "limit"), ("?limit=101", "limit"), ("?before=-1", "before"), ("?before=x", "before")]
    {
        let problem = api.get(&format!("/api/dead-letters{query}")).await?.expect_problem(400, "invalid-parameter")?;
        ensure!(problem["errors"][0]["field"] == parameter, "{problem}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_replayed_where_replay_is_off() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().start().await?;
    let api = Api::new(&producer)?;
    write_letters(&stack, 1).await?;
    let problem = api.replay(&json!({"through": 0})).await?.expect_problem(403, "replay-off")?;
    ensure!(problem["detail"].as_str().is_some_and(|detail| detail.contains("DEAD_LETTER_REPLAY")), "{problem}");
    let list = api.dead_letters("").await?;
    ensure!(list["replay"] == false && list["waiting"] == 1, "{list}");
    ensure!(events(&stack).await?.is_empty(), "an event was written");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn listed_letters_are_replayed_exactly_once() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = replaying(&stack).await?;
    let _consumer = stack.consumer().start().await?;
    write_letters(&stack, 4).await?;
    // A letter of another topic cannot go back: it is skipped, and blocks nothing.
    send(&stack, &format!("{}.dlq", stack.topic()), b"?", rdkafka::message::OwnedHeaders::new()).await?;
    write_letters(&stack, 1).await?;

    ensure!(api.replayed(1).await? == 2, "not the two that were listed");
    let list = api.dead_letters("").await?;
    let waiting: Vec<_> =
        list["dead_letters"].as_array().expect("a list").iter().map(|letter| &letter["waiting"]).collect();
    ensure!(list["waiting"] == 4 && list["total"] == 6, "{list}");
    ensure!(waiting == [true, true, true, true, false, false], "{list}");
    ensure!(api.replayed(1).await? == 0, "a letter was replayed twice");
    ensure!(api.replayed(5).await? == 3, "not the rest");
    ensure!(api.replayed(5).await? == 0, "a letter was replayed twice");
    ensure!(api.dead_letters("").await?["waiting"] == 0, "some still wait");

    let seen = events(&stack).await?;
    let expected = [0, 1, 2, 3, 0].map(event);
    let expected: Vec<_> =
        expected.iter().map(|event| serde_json::from_str::<Value>(event).expect("JSON")["order_id"].clone()).collect();
    ensure!(seen.iter().map(|id| json!(id)).collect::<Vec<_>>() == expected, "{seen:?}");
    eventually("the notifications", PATIENCE, async || {
        let count = notified(&stack).await?.len();
        ensure!(count == 5, "{count} notifications");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_replays_send_no_letter_twice() -> Result<()> {
    const LETTERS: usize = 250;
    let stack = Stack::shared().await?;
    let (_one, one) = replaying(&stack).await?;
    let (_other, other) = replaying(&stack).await?;
    write_letters(&stack, LETTERS).await?;
    let everything = json!({"through": LETTERS});
    // Concurrent replays in one process, and in another, which does not know of them.
    let (here, there) = join(join(one.replay(&everything), one.replay(&everything)), other.replay(&everything)).await;
    for reply in [&here.0?, &here.1?, &there?] {
        if reply.status != 200 {
            reply.expect_problem(409, "replay-under-way")?;
        }
    }
    eventually("the rest", PATIENCE, async || {
        one.replayed(LETTERS as u64).await?;
        let list = one.dead_letters("?limit=1").await?;
        ensure!(list["waiting"] == 0, "{list}");
        Ok(())
    })
    .await?;
    let mut seen = events(&stack).await?;
    ensure!(seen.len() == LETTERS, "{} events of {LETTERS} letters", seen.len());
    seen.sort();
    seen.dedup();
    ensure!(seen.len() == LETTERS, "some events exist twice");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_an_offset_is_refused() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = replaying(&stack).await?;
    write_letters(&stack, 1).await?;
    for body in [json!({}), json!({"through": "0"}), json!(7), json!([0]), json!({"through": [0]})] {
        api.replay(&body).await?.expect_problem(400, "malformed")?;
    }
    for body in [json!({"through": -1}), json!({"through": 0.5})] {
        api.replay(&body).await?.expect_problem(400, "invalid-parameter")?;
    }
    ensure!(api.dead_letters("").await?["waiting"] == 1, "a letter was replayed");
    // JSON Schema counts this as an integer.
    let reply = api.replay(&json!({"through": 0.0})).await?;
    ensure!(reply.status == 200 && reply.json()["replayed"] == 1, "{reply:?}");
    let untyped = api.request("POST", "/api/dead-letters/replay").body(r#"{"through":0}"#);
    api.send(untyped).await?.expect_problem(415, "unsupported-media-type")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_can_be_replayed_after_an_outage_of_kafka() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let (_producer, api) = replaying(&stack).await?;
    write_letters(&stack, 1).await?;
    stack.kafka().kill();
    let listed = api.get("/api/dead-letters").await?.expect_problem(503, "kafka-unavailable")?;
    ensure!(listed["detail"].as_str().is_some_and(|detail| detail.contains("Kafka")), "{listed}");
    api.replay(&json!({"through": 0})).await?.expect_problem(503, "kafka-unavailable")?;
    stack.kafka().start_again().await?;
    eventually("the replay", PATIENCE, async || {
        ensure!(api.replayed(0).await? == 1, "it was replayed before, or twice");
        Ok(())
    })
    .await?;
    ensure!(events(&stack).await?.len() == 1, "not one event");
    Ok(())
}
