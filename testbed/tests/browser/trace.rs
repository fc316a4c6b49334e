//! The trace of an order, as its trail shows it.

use anyhow::{Result, ensure};
use orderflow_testbed::{Stack, http};
use serde_json::json;

use crate::support::{Shop, on};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_of_an_order_links_to_its_trace() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("TRACE_URL_TEMPLATE", "https://jaeger.example/trace/{trace_id}?uiEmbed=v0");
    on(stack, producer, async |shop: &Shop| {
        // The client records its trace, so that the order has one although this producer sends no spans.
        let order = json!({"user_id": "alice", "product_name": "Keyboard", "quantity": 2, "price": 149.99});
        let request = http::client().post(format!("{}/api/orders", shop.producer.url()?)).json(&order);
        let answer = request.header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01")).send().await?;
        ensure!(answer.status() == 201, "{answer:?}");
        let page = &shop.page;
        page.click("#orders-list li.order:first-child button").await?;
        page.show_all("#order-trail[open] #trail-steps li[data-state=done]", |steps| steps.len() == 5).await?;
        page.shows("#trail-trace", |text| text.contains(TRACE)).await?;
        let link: String = page.script("return document.querySelector('#trail-trace a').href", &[]).await?;
        ensure!(link == format!("https://jaeger.example/trace/{TRACE}?uiEmbed=v0"), "{link}");
        page.click("#trail-close").await?;

        // An order without a trace has no such line.
        let untraced = shop.place("bob", "Lamp").await?;
        ensure!(untraced["user_id"] == "bob", "{untraced}");
        page.shows("#orders-list li.order:first-child", |text| text.contains("Lamp")).await?;
        page.click("#orders-list li.order:first-child button").await?;
        page.show_all("#order-trail[open] #trail-steps li[data-state=done]", |steps| steps.len() == 5).await?;
        ensure!(!page.is_displayed("#trail-trace").await?, "a trace is shown");
        Ok(())
    })
    .await
}
