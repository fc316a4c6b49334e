//! Many orders at once from the page: all are stored once, and the page keeps up.

use anyhow::{Result, ensure};

use crate::support::{Shop, on_a_dashboard};

const BURST: u64 = 300;

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_stored_and_notified_and_counted() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        page.fill("#burst-number", "1001").await?;
        page.shows("#burst-note.error", |text| text.contains("1,000")).await?;
        page.fill("#burst-number", &BURST.to_string()).await?;
        page.click("#burst-form button").await?;
        page.shows("#burst-note", |text| text.starts_with(&format!("{BURST} of {BURST} stored"))).await?;
        page.shows("#activity-log", |text| text.contains("Burst finished")).await?;
        page.shows("#burst-form button", |text| text == "Send").await?;
        shop.notified(BURST).await?;
        // The numbers of orders stored and of notifications.
        page.show_all("li.part.api dd", |figures| figures == [BURST.to_string(), BURST.to_string()]).await?;
        page.show_all("#orders-list li.order", |rows| rows.len() == 25).await?;

        let mut stored = 0;
        for shard in [1, 2] {
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
                .fetch_one(&mut shop.stack.shard(shard).await?)
                .await?;
            stored += count;
        }
        ensure!(stored == BURST as i64, "{stored} orders of a burst of {BURST}");
        Ok(())
    })
    .await
}
