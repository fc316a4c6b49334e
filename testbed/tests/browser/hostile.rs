//! Text that would run as a program if the page took it for markup. It stays text, wherever a user can put it.

use anyhow::{Result, ensure};
use rdkafka::message::OwnedHeaders;
use thirtyfour::Key;

use crate::support::{Shop, on_a_dashboard};

/// Texts that act if they are taken for markup, for the end of an attribute, or for a way to other markup.
const ATTACKS: [&str; 4] = [
    "<img src=x onerror=\"window.pwned=1\">",
    "\"><script>window.pwned=1</script>",
    "'><svg onload=window.pwned=1>",
    "</bdi></li><iframe srcdoc=\"<script>parent.pwned=1</script>\">",
];

/// Returns the traces on the page if one of them was run.
const TRACES: &str = "return [typeof window.pwned, document.querySelectorAll(
    'img[src=x], [onerror], [onload], iframe, body script, svg[onload], a[href^=javascript]').length]";

async fn expect_text_only(shop: &Shop) -> Result<()> {
    let (pwned, nodes): (String, usize) = shop.page.script(TRACES, &[]).await?;
    ensure!(pwned == "undefined" && nodes == 0, "text became markup: {nodes} elements; window.pwned is {pwned}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn markup_in_orders_stays_text() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        for attack in ATTACKS {
            let (user, product) = (format!("a{attack}"), format!("{attack} lamp"));
            page.fill_order(&user, &product).await?;
            page.click("#place-form button").await?;
            // Long text is shortened where room is short.
            let is_shown = |text: &str| [&user, &product].iter().all(|name| text.contains(&name[..20]));
            page.shows("#outcome", |text| is_shown(text) && text.contains("Notified after")).await?;
            let row = "#orders-list li.order:first-child";
            page.shows(row, is_shown).await?;

            page.click("#orders-list li.order:first-child button").await?;
            page.shows("#path-what", is_shown).await?;
            page.shows("#path-receipt", |text| text.contains(&product)).await?;
            expect_text_only(shop).await?;
            page.type_keys(Key::Escape).await?;

            page.fill("#search-text", &user).await?;
            page.show_all("#orders-list li.order", |rows| rows.len() == 1 && is_shown(&rows[0])).await?;
            page.fill("#search-text", attack).await?;
            page.show_all("#orders-list li.order", <[String]>::is_empty).await?;
            page.clear("#search-text").await?;
            page.show_all("#orders-list li.order", |rows| !rows.is_empty()).await?;
            page.shows("#place-form button", |text| text == "Place order").await?;
            expect_text_only(shop).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn markup_in_dead_letters_stays_text() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        for attack in ATTACKS {
            // The first is not JSON; the reason of the second quotes it.
            let quoted = serde_json::json!({"event_type": attack}).to_string();
            for value in [attack, &quoted] {
                shop.send(&shop.stack.topic(), attack, value, OwnedHeaders::new()).await?;
            }
        }
        let letters = 2 * ATTACKS.len();
        let keys = page.show_all("#letters-list .key", |keys| keys.len() == letters).await?;
        ensure!(keys.iter().all(|key| ATTACKS.contains(&key.as_str())), "{keys:?}");
        page.script::<()>(
            "document.querySelectorAll('#letters-list details').forEach((one) => { one.open = true; })",
            &[],
        )
        .await?;
        let values = page.show_all("#letters-list pre", |values| values.len() == letters).await?;
        for attack in ATTACKS {
            ensure!(values.iter().any(|value| value == attack), "{attack} is not among {values:?}");
        }
        expect_text_only(shop).await
    })
    .await
}
