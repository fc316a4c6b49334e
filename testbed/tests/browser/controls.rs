//! The page's controls under `orderflow-dev up`, as a person uses them. A stopped part is named, orders are accepted
//! nevertheless, and the pending work is done once when the part runs again.

use anyhow::{Result, ensure};
use orderflow_testbed::{eventually, folder, http, wait::PATIENCE};
use serde_json::Value;

use crate::{
    console::Failures,
    page::{NOT_NOTIFIED, NOTIFIED, Page, is_open},
    up::Up,
};

const PARTS: [&str; 5] = ["s3", "kafka", "shard1", "shard2", "consumer"];

#[tokio::test(flavor = "multi_thread")]
async fn a_part_stopped_on_the_page_is_named_and_its_work_done_once_later() -> Result<()> {
    let up = Up::start(folder::for_test_process()?).await?;
    let page = Page::open(&up.api).await?.with_controls(&up.controls);
    let outcome = async {
        page.shows("#feed-state", |text| text.contains("live")).await?;
        for part in PARTS {
            page.shows(&state(part), |word| word == "running").await?;
        }
        off_and_on(&page, "kafka", "alice", 1).await?;
        off_and_on(&page, "consumer", "nora", 2).await?;
        notified(&up, 2).await?;
        up.is_scraped().await?;
        // While Kafka is stopped, dead letters cannot be read.
        page.expect_clean_console(Failures::Provoked).await
    };
    let outcome = outcome.await;
    if outcome.is_err() {
        eprintln!("{}", page.describe().await.unwrap_or_else(|error| format!("{error:#}")));
    }
    outcome
}

/// Stops `part`, places order number `count` of `user`, and starts the part again.
async fn off_and_on(page: &Page, part: &str, user: &str, count: usize) -> Result<()> {
    let (state, word) = (state(part), format!("li.part.{part} .word"));
    page.shows(&word, |word| word == "up").await?;
    page.click(&format!("#control-{part} ~ button")).await?;
    page.shows(&state, |word| word == "off").await?;
    page.shows(&word, |word| word == "down").await?;

    page.fill_order(user, "Keyboard").await?;
    page.click("#place-form button").await?;
    page.shows("#outcome", |text| text.contains(user) && text.contains("Stored on")).await?;
    let newest = "#orders-list li.order:first-child";
    page.shows(newest, |text| text.contains(user)).await?;
    page.show_all(NOT_NOTIFIED, |orders| orders.len() == 1 && orders.iter().all(|step| is_open(step))).await?;
    page.show_all(NOTIFIED, |orders| orders.len() == count - 1).await?;

    page.click(&format!("#control-{part} ~ button")).await?;
    page.shows(&state, |word| word == "running").await?;
    page.show_all(NOTIFIED, |orders| orders.len() == count).await?;
    page.shows(&word, |word| word == "up").await?;
    Ok(())
}

/// Returns the selector of a part's state.
fn state(part: &str) -> String {
    format!("#control-{part} ~ .pill")
}

/// Waits until the API counts this many notifications in all.
async fn notified(up: &Up, count: u64) -> Result<()> {
    eventually(&format!("{count} notifications"), PATIENCE, async || {
        let stats: Value = http::client().get(format!("{}/api/stats", up.api)).send().await?.json().await?;
        ensure!(stats["notifications"]["total"] == count, "{}", stats["notifications"]);
        Ok(())
    })
    .await
}
