//! The search for an order by the name of its user, or by its id.

use anyhow::{Context, Result, ensure};
use thirtyfour::Key;

use crate::support::{Shop, on_a_dashboard};

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_found_by_their_user_and_by_their_id() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        for (user, product) in [("alice", "Keyboard"), ("zara", "Lamp"), ("alice", "Notebook")] {
            shop.place(user, product).await?;
        }
        page.show_all("#orders-list li.order", |rows| rows.len() == 3).await?;

        page.fill("#search-text", "alice").await?;
        page.show_all("#orders-list li.order", |rows| rows.len() == 2 && rows.iter().all(|row| row.contains("alice")))
            .await?;
        page.shows("#search-note", |text| text.starts_with("2 orders")).await?;
        page.fill("#search-text", "Alice").await?;
        page.shows("#orders-empty", |text| text.contains("no orders")).await?;

        let lamp = &shop.orders_of("zara").await?[0];
        let id = lamp["id"].as_str().context("an order has an id")?;
        page.fill("#search-text", id).await?;
        page.show_all("#orders-list li.order", |rows| rows.len() == 1 && rows[0].contains("Lamp")).await?;
        page.type_keys(Key::Enter).await?;
        page.shows("#order-path[open] #path-what", |text| text.contains("Lamp")).await?;
        ensure!(page.text("#path-id").await? == id);
        page.type_keys(Key::Escape).await?;

        // A request for a missing order is answered 404, which the browser reports.
        shop.provokes_failures();
        page.fill("#search-text", "00000000-0000-7000-8000-000000000000").await?;
        page.shows("#orders-empty", |text| text.contains("No order has this id")).await?;
        page.clear("#search-text").await?;
        page.show_all("#orders-list li.order", |rows| rows.len() == 3).await?;
        Ok(())
    })
    .await
}
