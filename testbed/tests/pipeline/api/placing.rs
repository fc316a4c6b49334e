//! One order, from the request to each place where it must arrive.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use futures_util::future::{join, join_all};
use orderflow_testbed::{
    Isolation, Record, Service, Stack,
    api::{Api, Reply, order_of, user},
    eventually,
    wait::{PATIENCE, accepted},
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{expect_each_exactly_once, serving, stored};

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Returns the order of the demo's README.
fn keyboard(user: &str) -> String {
    format!(r#"{{"user_id":"{user}","product_name":"Mechanical Keyboard","quantity":2,"price":149.99}}"#)
}

/// Returns the id and `created_at` of a placed order.
fn id_and_time(reply: &Reply) -> Result<(String, String)> {
    ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
    let order = &reply.json()["order"];
    let text = |name: &str| order[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {order}"));
    Ok((text("id")?, text("created_at")?))
}

async fn place_keyboard(api: &Api, user: &str) -> Result<(String, String)> {
    id_and_time(&api.post(keyboard(user), None).await?)
}

/// Waits until the topic has this many records.
async fn records(stack: &Stack, topic: &str, count: usize) -> Result<Vec<Record>> {
    eventually(&format!("{count} records in {topic}"), PATIENCE, async || {
        let records = stack.read_topic(topic, Isolation::ReadCommitted).await?;
        accepted(records, |records| records.len() == count)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_answered_as_in_the_demos_readme() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    for (user, shard, users) in [("alice", "shard1", "A-M"), ("zara", "shard2", "N-Z")] {
        let reply = api.post(keyboard(user), None).await?;
        let (id, at) = id_and_time(&reply)?;
        let expected = format!(
            r#"{{"order":{{"id":"{id}","user_id":"{user}","product_name":"Mechanical Keyboard","quantity":2,"price":149.99,"status":"created","receipt_s3_key":"receipts/{user}/{id}.txt","receipt_status":"pending","created_at":"{at}","updated_at":"{at}"}},"shard":"{shard}","shard_info":"{shard} ({users})","receipt":"receipts/{user}/{id}.txt"}}"#
        );
        assert_eq!(reply.text, expected);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("idempotency-replayed"), None);
        assert_eq!(Uuid::parse_str(&id)?.get_version_num(), 7, "{id}");
        assert!(at.ends_with('Z') && at.len() == "2026-11-22T19:25:32.123456Z".len(), "{at}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_listed_newest_first_and_by_user() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    assert_eq!(api.get("/api/orders").await?.text, r#"{"orders":[],"count":0}"#);

    let (first, _) = place_keyboard(&api, "alice").await?;
    let (second, _) = place_keyboard(&api, "zara").await?;
    let (third, _) = place_keyboard(&api, "alice").await?;
    for (path, expected) in [
        ("/api/orders", vec![&third, &second, &first]),
        ("/api/orders?user_id=alice", vec![&third, &first]),
        ("/api/orders?user_id=zara", vec![&second]),
        ("/api/orders?user_id=bob", vec![]),
    ] {
        let list = api.get(path).await?.json();
        let names: BTreeSet<&str> =
            list.as_object().context("a list is an object")?.keys().map(String::as_str).collect();
        assert_eq!(names, BTreeSet::from(["count", "orders"]), "{path}");
        assert_eq!(list["count"], expected.len(), "{path}");
        let ids: Vec<&Value> = list["orders"].as_array().context("orders")?.iter().map(|order| &order["id"]).collect();
        assert_eq!(ids, expected, "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_a_row_of_its_users_shard_and_of_no_other() -> Result<()> {
    const ROW: &str = "SELECT user_id, product_name, quantity, price::text, pg_typeof(price)::text, status, \
                       receipt_s3_key, created_at = $2::text::timestamptz AND updated_at = created_at \
                       FROM orders WHERE id = $1::text::uuid";
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    for (user, shard) in [("alice", 1), ("zara", 2)] {
        let (id, at) = place_keyboard(&api, user).await?;
        let row: (String, String, i32, String, String, String, String, bool) =
            sqlx::query_as(ROW).bind(&id).bind(&at).fetch_one(&mut stack.shard(shard).await?).await?;
        let text = str::to_owned;
        let key = format!("receipts/{user}/{id}.txt");
        let expected =
            (text(user), text("Mechanical Keyboard"), 2, text("149.99"), text("numeric"), text("created"), key, true);
        assert_eq!(row, expected);
        let elsewhere = stored(&stack, 3 - shard).await?;
        assert!(elsewhere.iter().all(|(other, _)| *other != id), "{user}'s order is on both shards");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_becomes_one_event_under_its_users_key() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    for (user, shard) in [("alice", 1), ("zara", 2)] {
        let (id, at) = place_keyboard(&api, user).await?;
        let events = records(&stack, &stack.topic(), shard).await?;
        let event = events.iter().find(|event| event.key.as_deref() == Some(user)).context("no event of the user")?;
        let expected = format!(
            r#"{{"event_type":"order.created","order_id":"{id}","user_id":"{user}","product_name":"Mechanical Keyboard","quantity":2,"total":299.98,"status":"created","shard":{shard},"timestamp":"{at}"}}"#
        );
        assert_eq!(event.text(), expected);
        let headers: Vec<&str> = event.headers.keys().map(String::as_str).collect();
        assert_eq!(headers, ["event_id", "schema_version", "traceparent"]);
        let event_id = &event.headers["event_id"];
        Uuid::parse_str(event_id).with_context(|| format!("event_id {event_id:?}"))?;
        assert_eq!(event.headers["schema_version"], "1");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_continues_the_trace_of_its_request_or_starts_one() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let given = [
        Some(TRACEPARENT),
        None,
        Some("00-no-trace-01"),
        Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
        Some("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"),
        Some("00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01"),
    ];
    let mut expected = BTreeMap::new();
    for traceparent in given {
        let mut request = api.request("POST", "/api/orders").header("content-type", "application/json");
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent);
        }
        let (id, _) = id_and_time(&api.send(request.body(keyboard("alice"))).await?)?;
        expected.insert(id, traceparent);
    }
    for event in records(&stack, &stack.topic(), expected.len()).await? {
        let value: Value = event.json()?;
        let id = value["order_id"].as_str().context("order_id")?;
        let (given, found) = (expected[id], event.headers["traceparent"].as_str());
        if given == Some(TRACEPARENT) {
            assert_eq!(found, TRACEPARENT);
        } else {
            assert!(found.starts_with(&format!("00-{}-", id.replace('-', ""))), "{given:?} became {found}");
            assert_eq!(found.len(), TRACEPARENT.len(), "{found}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_becomes_one_notification_a_log_line_and_a_message_of_the_feed() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let consumer = stack.consumer().env("LOG_NOTIFICATIONS", "true").start().await?;
    let mut feed = api.client.get(format!("{}/api/feed", api.url)).timeout(PATIENCE).send().await?;
    assert_eq!(feed.headers()["content-type"], "text/event-stream");
    let (id, at) = place_keyboard(&api, "alice").await?;

    let event = records(&stack, &stack.topic(), 1).await?.remove(0);
    let notification = records(&stack, &format!("{}.notifications", stack.topic()), 1).await?.remove(0);
    assert_eq!(notification.key.as_deref(), Some("alice"));
    assert_eq!(notification.partition, event.partition);
    let message = format!(
        "Dear alice, your order for 2 x Mechanical Keyboard (Total: $299.98) has been confirmed! Order ID: {id}"
    );
    let value: Value = notification.json()?;
    let expected = json!({
        "event_id": event.headers["event_id"],
        "order_id": id,
        "user_id": "alice",
        "message": message,
        "accepted_at": at,
        "published_at": value["published_at"],
        "notified_at": value["notified_at"],
        "partition": event.partition,
        "offset": event.offset,
    });
    assert_eq!(value, expected);
    for time in ["published_at", "notified_at"] {
        assert!(value[time].as_str().is_some_and(|text| text.ends_with('Z')), "{time}: {value}");
    }

    eventually("the consumer to log the order", PATIENCE, async || consumer.process().log_since_start().contains(&id))
        .await?;
    let log = consumer.process().log_since_start();
    assert!(["alice", "Keyboard", "299.98"].iter().all(|personal| !log.contains(personal)), "{log}");
    let mut fed = String::new();
    while !fed.contains(&notification.text()) {
        let chunk = feed.chunk().await?.with_context(|| format!("the feed ended after {fed:?}"))?;
        fed.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(fed.contains("event: frame"), "{fed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_requests_without_a_key_are_two_orders() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let (first, _) = place_keyboard(&api, "alice").await?;
    let (second, _) = place_keyboard(&api, "alice").await?;
    let ids: BTreeSet<String> = stored(&stack, 1).await?.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, BTreeSet::from([first, second]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_is_shown_as_the_same_shortest_number_everywhere() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    for (user, sent, shown) in [
        ("a", "0.01", "0.01"),
        ("b", "0.1", "0.1"),
        ("c", "150", "150"),
        ("n", "150.00", "150"),
        ("o", "149.9", "149.9"),
        ("p", "149.90", "149.9"),
        ("q", "99999999.99", "99999999.99"),
    ] {
        let body = format!(r#"{{"user_id":"{user}","product_name":"Keyboard","quantity":1,"price":{sent}}}"#);
        let placed = api.post(body, None).await?;
        let (id, _) = id_and_time(&placed)?;
        let read = api.get(&format!("/api/orders/{id}")).await?;
        let listed = api.get(&format!("/api/orders?user_id={user}")).await?;
        for reply in [placed, read, listed] {
            let price = reply.text.split_once(r#""price":"#).and_then(|(_, rest)| rest.split_once(','));
            assert_eq!(price.map(|(price, _)| price), Some(shown), "{sent}: {}", reply.text);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_the_database_refuses_fails_alone() -> Result<()> {
    let stack = Stack::shared().await?;
    for shard in [1, 2] {
        sqlx::query("ALTER TABLE orders ADD CONSTRAINT not_refused CHECK (product_name <> 'refused')")
            .execute(&mut stack.shard(shard).await?)
            .await?;
    }
    let (_producer, api) = serving(&stack).await?;
    let _consumer = stack.consumer().start().await?;

    let refused = order_of("alice").replace("Keyboard", "refused");
    let good = join_all((0..50).map(async |sequence| api.place(&user(sequence), None).await?.acked(sequence)));
    let (good, refused) = join(good, api.post(refused, Some("refused"))).await;
    refused?.expect_problem(500, "refused")?;
    let acked: Vec<_> = good.into_iter().collect::<Result<_>>()?;

    expect_each_exactly_once(&stack, &acked).await?;
    assert_eq!(stored(&stack, 1).await?.len() + stored(&stack, 2).await?.len(), 50);
    let keys: i64 =
        sqlx::query_scalar("SELECT count(*) FROM idempotency_keys").fetch_one(&mut stack.shard(1).await?).await?;
    assert_eq!(keys, 0, "the refused order's key was kept");
    Ok(())
}
