//! The images in `docs/images`, of the real pipeline under some load: `make screenshots` takes them again.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join;
use orderflow_testbed::{Service, Stack};
use rdkafka::message::OwnedHeaders;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    page::{NOTIFIED, PENDING, PHONE, Screen},
    support::{Page, Shop, on},
};

/// High enough for the form and the newest orders.
const HIGH: Screen = Screen { width: 1280, height: 1560, overlays_scrollbars: true };

/// The largest size of an image: everyone who opens the README downloads it.
const LARGEST: usize = 300_000; // bytes

/// Orders before the first image, and their rate: the charts then have data.
const ORDERS: u64 = 1_200;
const RATE: u64 = 20;

const USERS: [&str; 12] =
    ["alice", "zara", "bob", "nina", "carol", "omar", "dave", "peter", "erin", "rosa", "frank", "tom"];
const PRODUCTS: [&str; 7] =
    ["Mechanical keyboard", "Desk lamp", "Notebook", "Monitor arm", "Headphones", "Coffee grinder", "Backpack"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes docs/images: make screenshots"]
async fn the_dashboard_for_the_docs() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let producer = stack.producer();
    on(stack, producer, async |shop: &Shop| {
        let page = &shop.page;
        page.show_on(HIGH).await?;
        shop.send(&shop.stack.topic(), "mallory", r#"{"event_type":"order.updated"}"#, OwnedHeaders::new()).await?;
        load(shop, 0..ORDERS).await?;
        page.fill_order("alice", "Mechanical keyboard").await?;
        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Notified after")).await?;
        page.shows("#place-form button", |text| text == "Place order").await?;

        // Under load, as a person sees it.
        let ((), ()) = try_join(load(shop, 0..5 * RATE), async {
            page.prefer("light").await?;
            page.show_all(NOTIFIED, |orders| !orders.is_empty()).await?;
            page.scroll_to_top().await?;
            save(page, "light").await?;
            page.prefer("dark").await?;
            save(page, "dark").await?;
            page.prefer("light").await?;
            // A tab of its own, so that the charts of the other one continue.
            let desktop = page.tab().await?;
            page.new_tab().await?;
            page.show_on(PHONE).await?;
            page.show_all("li.part[data-state=good]", |parts| parts.len() == 8).await?;
            page.scroll_to_top().await?;
            save(page, "phone").await?;
            page.switch_to(&desktop).await
        })
        .await?;

        page.shows("li.part.s3[data-state=good]", |text| text.contains("Waiting\n0")).await?;
        shop.provokes_failures();
        shop.stack.object_store().pause();
        shop.stack.postgres(2).stop().await?;
        page.shows("li.part.shard[data-state=bad]", |text| text.contains("shard2")).await?;
        for user in USERS.iter().filter(|user| **user < "n").cycle().take(40) {
            shop.place(user, "Desk lamp").await?;
        }
        page.shows("li.part.s3[data-state=bad]", |text| text.contains("≥ 40")).await?;
        page.show_all(PENDING, |receipts| !receipts.is_empty()).await?;
        page.fill_order("zara", "Desk lamp").await?;
        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Not stored.")).await?;
        page.scroll_to_top().await?;
        save(page, "fault").await?;
        shop.stack.object_store().resume();
        Ok(())
    })
    .await
}

/// Places orders at a steady rate, as in a shop.
async fn load(shop: &Shop, numbers: std::ops::Range<u64>) -> Result<()> {
    let mut ticks = interval(Duration::from_millis(1_000 / RATE));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in numbers {
        ticks.tick().await;
        let number = number as usize;
        shop.place(USERS[number % USERS.len()], PRODUCTS[number % PRODUCTS.len()]).await?;
    }
    Ok(())
}

async fn save(page: &Page, name: &str) -> Result<()> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/images/{name}.png"));
    let picture = page.screenshot().await?;
    ensure!(picture.len() < LARGEST, "{name}.png would have {} bytes", picture.len());
    std::fs::create_dir_all(file.parent().context("a file is in a folder")?)?;
    std::fs::write(&file, picture).with_context(|| format!("write {}", file.display()))
}
