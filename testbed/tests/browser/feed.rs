//! The live feed on the page: events during a cut connection appear afterwards, and a feed that started over is
//! reported.

use anyhow::{Result, ensure};
use orderflow_testbed::{Link, Service, wait::PATIENCE};

use crate::{
    page::NOTIFIED,
    support::{Shop, on_a_dashboard},
};

/// More than the latest notifications that a new stream begins with, fewer than the rows that the list shows.
const MEANWHILE: u64 = 24;

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_resumes_after_a_cut() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        shop.place("alice", "Before").await?;
        page.show_all(NOTIFIED, |orders| orders.len() == 1).await?;
        shop.provokes_failures();
        shop.network.set(Link::Cut);
        page.shows("#feed-state", |text| text.contains("reconnecting")).await?;
        for number in 0..MEANWHILE {
            shop.place(&format!("user-{number}"), "Meanwhile").await?;
            // Each is in a frame of its own then: a frame names no more than twenty.
            shop.notified(number + 2).await?;
        }
        shop.network.set(Link::Open);
        page.shows("#feed-state", |text| text.contains("live")).await?;
        page.shows("#api-state", |text| text.contains("answers")).await?;
        // Only the feed reports how long each order took.
        let took = |step: &String| step.starts_with("Notified ");
        page.show_all(NOTIFIED, |orders| orders.len() == 25 && orders.iter().all(took)).await?;
        page.shows("#throughput .sum dd", |sum| sum == "25").await?;
        let log = page.shows("#activity-log", |text| text.contains("The feed is live again")).await?;
        ensure!(!log.contains("anew") && !log.contains("missed"), "the feed did not resume: {log}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_reconnects_to_a_restarted_producer() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        shop.place("alice", "Before").await?;
        page.show_all(NOTIFIED, |orders| orders.len() == 1).await?;
        shop.provokes_failures();
        shop.producer.kill();
        page.shows("#api-state", |text| text.contains("no answer")).await?;
        page.fill_order("alice", "Meanwhile").await?;
        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("No answer.") && text.contains("Retrying is safe")).await?;
        shop.producer.start_again().await?;
        shop.producer.ready(PATIENCE).await?;
        page.shows("#api-state", |text| text.contains("answers")).await?;
        page.shows("#feed-state", |text| text.contains("live")).await?;
        page.shows("#activity-log", |text| text.contains("Another replica, or a restarted one")).await?;

        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Stored on shard1") && text.contains("Notified after")).await?;
        let orders = shop.orders_of("alice").await?;
        ensure!(orders.len() == 2, "{} orders: {orders:?}", orders.len());
        Ok(())
    })
    .await
}
