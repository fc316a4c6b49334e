//! An order from the form to its notification, as a person sees it.

use anyhow::{Context, Result, ensure};

use crate::support::{Shop, on_a_dashboard};

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_placed_and_seen_until_it_is_notified() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        page.fill("#user_id", "alice").await?;
        page.fill("#product_name", "Keyboard").await?;
        page.fill("#price", "149.99").await?;
        page.click("#place button").await?;
        page.shows("#outcome", |text| text.contains("Stored on shard1")).await?;
        page.shows("#orders", |text| text.contains("Keyboard") && text.contains("Notified in")).await?;
        Ok(())
    })
    .await
}
