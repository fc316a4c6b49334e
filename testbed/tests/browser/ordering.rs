//! An order from the form to its notification, as a person sees it: with the mouse, with a double click, and by
//! keyboard alone.

use anyhow::{Result, ensure};
use thirtyfour::Key;

use crate::{
    page::{DONE, NOTIFIED},
    support::{Shop, on_a_dashboard},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_placed_and_seen_until_it_is_notified() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        page.fill_order("alice", "Keyboard").await?;
        page.shows("#user_id-note", |text| text.contains("Goes to shard1")).await?;
        page.shows("#total-note", |text| text.contains("$299.98")).await?;
        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Stored on shard1") && text.contains("Notified after")).await?;
        page.shows("#orders-list", |text| text.contains("alice") && text.contains("Keyboard")).await?;
        page.show_all(DONE, |steps| {
            let wanted = ["Stored", "Receipt", "Published", "Notified"];
            steps.len() == wanted.len() && steps.iter().zip(wanted).all(|(step, wanted)| step.starts_with(wanted))
        })
        .await?;

        page.click("#outcome-path").await?;
        page.show_all("#order-path[open] #path-hops li[data-state=done]", |hops| hops.len() == 5).await?;
        page.shows("#path-state", |text| text.starts_with("Complete")).await?;
        let receipt = page.shows("#path-receipt", |text| text.contains("Keyboard")).await?;
        let order = &shop.orders_of("alice").await?[0];
        let id = order["id"].as_str().unwrap_or_default();
        ensure!(receipt.contains(id) && receipt.contains("299.98"), "{receipt}");
        ensure!(page.text("#path-id").await? == id, "the dialog is of another order than {order}");
        page.click("#path-close").await?;
        page.show_all("#order-path[open]", <[String]>::is_empty).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_double_click_places_one_order() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        page.fill_order("bob", "Lamp").await?;
        page.double_click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Stored on shard1") && text.contains("Notified after")).await?;
        // Ready for the next one: both clicks were handled.
        page.shows("#place-form button", |text| text == "Place order").await?;
        let orders = shop.orders_of("bob").await?;
        ensure!(orders.len() == 1, "a double click placed {} orders: {orders:?}", orders.len());
        page.show_all("#orders-list li.order", |rows| rows.len() == 1).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_placed_and_inspected_by_keyboard_alone() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        page.tab_to("#user_id").await?;
        page.type_keys("nina" + Key::Tab + "Monitor arm" + Key::Tab).await?;
        // The Tab key selects the text of a field, so typing replaces it.
        page.type_keys("3" + Key::Tab + "12.50" + Key::Enter).await?;
        page.shows("#outcome", |text| text.contains("Stored on shard2") && text.contains("3 × Monitor arm")).await?;
        page.shows("#orders-list", |text| text.contains("Monitor arm") && text.contains("$37.50")).await?;

        page.tab_to("#orders-list button").await?;
        page.type_keys(Key::Enter).await?;
        page.show_all("#order-path[open] #path-hops li[data-state=done]", |hops| hops.len() == 5).await?;
        page.type_keys(Key::Escape).await?;
        page.show_all("#order-path[open]", <[String]>::is_empty).await?;
        ensure!(page.focus_is_on("#orders-list button").await?, "the focus did not come back to the row");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_field_is_marked_and_the_order_not_sent() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        page.click("#place-form button").await?;
        page.shows("#user_id-note.error", |text| !text.is_empty()).await?;
        ensure!(page.focus_is_on("#user_id").await?, "the focus is not on the first field that is wrong");
        page.fill_order("alice", "Keyboard").await?;
        page.fill("#price", "149.999").await?;
        page.click("#place-form button").await?;
        page.shows("#price-note.error", |text| !text.is_empty()).await?;
        ensure!(page.focus_is_on("#price").await?, "the focus is not on the price");
        ensure!(shop.orders_of("alice").await?.is_empty(), "an order that breaks a rule was placed");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn order_placed_in_one_tab_appears_in_another() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        let first = page.tab().await?;
        let second = page.new_tab().await?;
        page.shows("#feed-state", |text| text.contains("live")).await?;
        page.switch_to(&first).await?;
        page.fill_order("carol", "Backpack").await?;
        page.click("#place-form button").await?;
        page.shows("#outcome", |text| text.contains("Notified after")).await?;
        page.switch_to(&second).await?;
        page.shows("#orders-list li.order:first-child", |text| text.contains("carol")).await?;
        page.show_all(NOTIFIED, |orders| orders.len() == 1).await?;
        Ok(())
    })
    .await
}
