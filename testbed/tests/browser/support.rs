//! Support of the dashboard's tests: the whole pipeline, and the page of its producer in a browser.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Consumer, Producer, Proxy, Stack, eventually, http, port, product::Builder, wait::PATIENCE};
use rdkafka::{
    ClientConfig,
    message::OwnedHeaders,
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};

use crate::console::Failures;

pub use crate::page::Page;

/// The pipeline and the page of one test.
pub struct Shop {
    pub page: Page,
    /// The network between the page and its producer.
    pub network: Proxy,
    pub producer: Producer,
    pub consumer: Consumer,
    pub stack: Stack,
    failures_are_provoked: AtomicBool,
}

/// Runs `test` on a stack, in a browser of its own. Afterwards the browser must have reported nothing.
pub async fn on_a_dashboard(test: impl AsyncFnOnce(&Shop) -> Result<()>) -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer();
    on(stack, producer, test).await
}

/// Runs `test` on a stack and with a producer that the test chooses.
pub async fn on(stack: Stack, producer: Builder<Producer>, test: impl AsyncFnOnce(&Shop) -> Result<()>) -> Result<()> {
    let shop = Shop::open(stack, producer).await?;
    let outcome = async {
        test(&shop).await?;
        shop.page.expect_clean_console(shop.failures()).await
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        eprintln!("{}", shop.page.describe().await.unwrap_or_else(|error| format!("{error:#}")));
    }
    outcome
}

impl Shop {
    async fn open(stack: Stack, producer: Builder<Producer>) -> Result<Self> {
        // A fixed port, so that the page still finds a producer that was started again.
        let port = port::free()?;
        let producer = producer.env("PORT", port.to_string());
        let (producer, consumer) = tokio::try_join!(producer.start(), stack.consumer().start())?;
        tokio::try_join!(producer.ready(PATIENCE), consumer.ready(PATIENCE))?;
        let network = Proxy::start(port).await?;
        let page = Page::open(&format!("http://127.0.0.1:{}", network.port())).await?;
        page.shows("#feed-state", |text| text.contains("live")).await?;
        Ok(Self { page, network, producer, consumer, stack, failures_are_provoked: AtomicBool::new(false) })
    }

    /// Allows failed requests of the page from now on, because the test causes them.
    pub fn provokes_failures(&self) {
        self.failures_are_provoked.store(true, Ordering::Relaxed);
    }

    fn failures(&self) -> Failures {
        if self.failures_are_provoked.load(Ordering::Relaxed) { Failures::Provoked } else { Failures::None }
    }

    /// Places an order as another client does, and returns it.
    pub async fn place(&self, user: &str, product: &str) -> Result<Value> {
        let order = json!({"user_id": user, "product_name": product, "quantity": 2, "price": 149.99});
        let answer = http::client().post(format!("{}/api/orders", self.producer.url()?)).json(&order).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status == 201, "{status}: {text}");
        let mut reply: Value = serde_json::from_str(&text).context("read the reply")?;
        Ok(reply["order"].take())
    }

    /// Returns the newest orders of `user` from the API.
    pub async fn orders_of(&self, user: &str) -> Result<Vec<Value>> {
        let list = self.get(&format!("/api/orders?user_id={user}")).await?;
        list["orders"].as_array().cloned().with_context(|| format!("no orders in {list}"))
    }

    /// Waits until the API counts this many notifications in all.
    pub async fn notified(&self, count: u64) -> Result<()> {
        eventually(&format!("{count} notifications"), PATIENCE, async || {
            let stats = self.get("/api/stats").await?;
            ensure!(stats["notifications"]["total"] == count, "{}", stats["notifications"]);
            Ok(())
        })
        .await
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let answer = http::client().get(format!("{}{path}", self.producer.url()?)).send().await?;
        answer.error_for_status()?.json().await.with_context(|| format!("read {path}"))
    }

    /// Writes a record of another program to a topic.
    pub async fn send(&self, topic: &str, key: &str, value: &str, headers: OwnedHeaders) -> Result<()> {
        let bootstrap = self.stack.kafka().bootstrap();
        let producer: FutureProducer = ClientConfig::new().set("bootstrap.servers", bootstrap).create()?;
        let record = FutureRecord::to(topic).partition(0).key(key).payload(value).headers(headers);
        producer.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error)?;
        Ok(())
    }
}
