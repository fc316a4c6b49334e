//! What the tests of the dashboard start from: the whole pipeline running, and the page of its producer open.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Consumer, Producer, Service, Stack, http, product::Builder};
use serde_json::{Value, json};

use crate::complaints::Failures;
pub use crate::page::{PATIENCE, Page};

/// Everything that a test of the dashboard has.
pub struct Shop {
    pub page: Page,
    pub producer: Producer,
    pub consumer: Consumer,
    pub stack: Stack,
    provoked: AtomicBool,
}

/// Runs `test` on a stack, in a browser of its own. Afterwards the browser must have had nothing to complain about.
pub async fn on_a_dashboard(test: impl AsyncFnOnce(&Shop) -> Result<()>) -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer();
    on(stack, producer, test).await
}

/// The same on a stack and with a producer that the test chooses.
pub async fn on(stack: Stack, producer: Builder<Producer>, test: impl AsyncFnOnce(&Shop) -> Result<()>) -> Result<()> {
    let (producer, consumer) = tokio::try_join!(producer.start(), stack.consumer().start())?;
    tokio::try_join!(producer.ready(PATIENCE), consumer.ready(PATIENCE))?;
    let page = Page::open(&producer.url()?).await?;
    let shop = Shop { page, producer, consumer, stack, provoked: AtomicBool::new(false) };
    let outcome = async {
        test(&shop).await?;
        let provoked = shop.provoked.load(Ordering::Relaxed);
        shop.page.expect_no_complaints(if provoked { Failures::Provoked } else { Failures::None }).await
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        eprintln!("{}", shop.page.describe().await.unwrap_or_else(|error| format!("{error:#}")));
    }
    outcome
}

impl Shop {
    /// From here on requests of the page fail, because the test makes them.
    pub fn provokes_failures(&self) {
        self.provoked.store(true, Ordering::Relaxed);
    }

    /// Places an order as another client does; its reply.
    pub async fn place(&self, user: &str, product: &str) -> Result<Value> {
        let order = json!({"user_id": user, "product_name": product, "quantity": 2, "price": 149.99});
        let answer = http::client().post(format!("{}/api/orders", self.producer.url()?)).json(&order).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status == 201, "{status}: {text}");
        serde_json::from_str(&text).context("read the reply")
    }
}
