//! Checks that the list and the charts of a page show orders that were notified before the page was opened.

use anyhow::{Result, ensure};
use orderflow_testbed::Service;

use crate::{
    page::{DONE, NOT_NOTIFIED, NOTIFIED, is_open},
    support::{Shop, on_a_dashboard},
};

/// The number of orders: the list shows all of them, and a new stream of the feed names fewer.
const EARLIER: u64 = 25;

/// The third step of the orders, where it is done.
const PUBLISHED: &str = "#orders-list .journey li:nth-child(3)[data-state=done]";

/// Loads the page again after orders were placed and notified.
async fn open_late(shop: &Shop) -> Result<()> {
    for number in 0..EARLIER {
        shop.place(&format!("user-{number}"), "Earlier").await?;
    }
    shop.notified(EARLIER).await?;
    shop.page.load().await
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_were_notified_before_the_page_was_opened_are_shown_as_notified() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        open_late(shop).await?;
        let orders = page.show_all(NOTIFIED, |orders| orders.len() as u64 == EARLIER).await?;
        // A row shows how long its order took only if the feed named the order, so this row has its state from the API.
        ensure!(orders.iter().any(|step| step == "Notified"), "the feed named every order: {orders:?}");
        page.show_all(PUBLISHED, |orders| orders.len() as u64 == EARLIER).await?;
        page.show_all(DONE, |steps| steps.len() as u64 == 4 * EARLIER).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_waits_for_the_consumer_is_shown_as_published_until_it_is_notified() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        shop.consumer.stop().await?;
        shop.place("alice", "Keyboard").await?;
        page.load().await?;
        page.show_all(PUBLISHED, |orders| orders.len() == 1).await?;
        page.show_all(NOT_NOTIFIED, |orders| orders.len() == 1 && orders.iter().all(|step| is_open(step))).await?;

        shop.consumer.start_again().await?;
        page.show_all(NOTIFIED, |orders| orders.len() == 1).await?;
        page.show_all(DONE, |steps| steps.len() == 4).await?;
        shop.notified(1).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_show_notifications_from_before_the_page_was_opened() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        open_late(shop).await?;
        page.shows("#throughput .sum dd", |sum| sum == EARLIER.to_string()).await?;
        page.click("#plots-details summary").await?;
        let counted = |counts: &[String]| counts.iter().filter_map(|count| count.parse::<u64>().ok()).sum::<u64>();
        page.show_all("#plots-table td:nth-child(2)", |counts| counted(counts) == EARLIER).await?;
        page.show_all("#plots-table td:nth-child(4)", |medians| medians.iter().any(|one| one.starts_with('≤'))).await?;
        Ok(())
    })
    .await
}
