//! Dead letters on the page: their reasons, and their replay by a person.

use anyhow::{Result, ensure};
use orderflow_testbed::{Isolation, Stack};
use rdkafka::message::{Header, OwnedHeaders};
use serde_json::json;

use crate::support::{Shop, on, on_a_dashboard};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_shown_with_its_reason_and_cannot_be_replayed_unless_that_is_allowed() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        page.shows("#letters-state", |text| text == "None").await?;
        shop.send(&shop.stack.topic(), "alice", r#"{"event_type":"order.updated"}"#, OwnedHeaders::new()).await?;
        page.shows("#letters-list li", |text| text.contains("unknown event_type") && text.contains("alice")).await?;
        page.shows("#letters-state", |text| text == "1 waiting of 1").await?;
        page.shows("#activity-log", |text| text.contains("dead letter")).await?;
        ensure!(!page.is_displayed("#letters-replay").await?, "a replay is offered that is not allowed");
        ensure!(page.text("#letters-about").await?.contains("orderflow-consumer dlq replay"));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_replayed_once_it_is_confirmed() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("DEAD_LETTER_REPLAY", "true");
    on(stack, producer, async |shop: &Shop| {
        let (page, topic) = (&shop.page, shop.stack.topic());
        // An older consumer could not read it, and this one can.
        let event = json!({
            "event_type": "order.created", "order_id": "00000000-0000-7000-8000-000000000001", "user_id": "alice",
            "product_name": "Keyboard", "quantity": 2, "total": 299.98, "status": "created", "shard": 1,
            "timestamp": "2026-01-02T03:04:05.678Z",
        });
        let headers =
            [("dlq.topic", topic.as_str()), ("dlq.partition", "0"), ("dlq.offset", "0"), ("dlq.reason", "too new")]
                .into_iter()
                .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        shop.send(&format!("{topic}.dlq"), "alice", &event.to_string(), headers).await?;
        page.shows("#letters-state", |text| text == "1 waiting of 1").await?;

        page.click("#letters-replay").await?;
        page.click("dialog.question button[value='']").await?;
        page.show_all("dialog.question", <[String]>::is_empty).await?;
        page.shows("#letters-state", |text| text == "1 waiting of 1").await?;
        page.click("#letters-replay").await?;
        page.click("dialog.question button[value=go]").await?;
        page.shows("#letters-note", |text| text.starts_with("Replayed 1")).await?;
        page.shows("#letters-state", |text| text == "All 1 replayed").await?;
        let events = shop.stack.read_topic(&topic, Isolation::ReadCommitted).await?;
        ensure!(events.len() == 1, "{} events after one replay", events.len());
        shop.notified(1).await
    })
    .await
}
