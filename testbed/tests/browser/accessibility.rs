//! Accessibility: axe-core reports no violation, in light and dark, with the dialog open and on a phone. A phone shows
//! the whole page without horizontal scrolling.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::tools;
use rdkafka::message::OwnedHeaders;
use serde_json::{Value, json};

use crate::{
    page::{DESKTOP, DONE, Screen},
    support::{Page, Shop, on_a_dashboard},
};

/// The narrowest phone that is still sold; its scrollbars take room, so that even less is left.
const NARROW: Screen = Screen { width: 360, height: 740, overlays_scrollbars: false };

/// Runs all of axe's rules, best practices included, and returns where and how each rule is violated.
const JUDGE: &str = "const done = arguments[0];
    axe.run().then(
        ({ violations }) => done(violations.map(({ id, help, nodes }) =>
            `${id}: ${help}\\n` + nodes.map(({ html, failureSummary }) => `  ${html}\\n  ${failureSummary}`).join('\\n'))),
        (error) => done([String(error)]),
    );";

/// Returns the elements beyond the right edge, except those in an element that scrolls.
const TOO_WIDE: &str = "const width = document.documentElement.clientWidth;
    return document.documentElement.scrollWidth <= width ? [] : [...document.body.querySelectorAll('*')]
        .filter((node) => node.getBoundingClientRect().right > width + 1)
        .map((node) => `${node.tagName} #${node.id} .${node.className}: ${node.getBoundingClientRect().right}`);";

async fn expect_accessible(page: &Page, when: &str) -> Result<()> {
    let script = std::fs::read_to_string(tools::axe()?).context("read axe-core")?;
    page.script::<Value>(&script, &[]).await?;
    let violations: Vec<String> = page.script_later(JUDGE, &[]).await?;
    ensure!(violations.is_empty(), "{when}:\n{}", violations.join("\n"));
    Ok(())
}

async fn expect_fits(page: &Page, when: &str) -> Result<()> {
    let too_wide: Vec<String> = page.script(TOO_WIDE, &[]).await?;
    ensure!(too_wide.is_empty(), "{when}, the page scrolls horizontally:\n{}", too_wide.join("\n"));
    Ok(())
}

/// Fills every region, with the longest texts allowed.
async fn fill(shop: &Shop) -> Result<()> {
    let page = &shop.page;
    shop.place(&"w".repeat(100), &"m".repeat(255)).await?;
    shop.place("zara", "Lamp").await?;
    shop.send(&shop.stack.topic(), &"k".repeat(200), &"v".repeat(3_000), OwnedHeaders::new()).await?;
    page.fill_order("alice", "Keyboard").await?;
    page.click("#place-form button").await?;
    page.shows("#outcome", |text| text.contains("Notified after")).await?;
    page.show_all(DONE, |steps| steps.len() == 12).await?;
    page.shows("#letters-list li", |text| !text.is_empty()).await?;
    page.fill("#price", "1.999").await?;
    page.shows("#place-form button", |text| text == "Place order").await?;
    page.click("#place-form button").await?;
    page.shows("#price-note.error", |text| !text.is_empty()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_can_use_it() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        fill(shop).await?;
        // A control: axe must report an unusable form.
        page.script::<()>("document.querySelector('label[for=price]').removeAttribute('for')", &[]).await?;
        let objection =
            expect_accessible(page, "without a label").await.err().context("a field lost its label, unnoticed")?;
        ensure!(format!("{objection:#}").contains("label"), "{objection:#}");
        page.script::<()>("document.querySelector('label:not([for])').htmlFor = 'price'", &[]).await?;
        for (name, screen) in [("a desktop", DESKTOP), ("a phone", NARROW)] {
            page.show_on(screen).await?;
            for scheme in ["light", "dark"] {
                page.prefer(scheme).await?;
                let when = format!("on {name}, {scheme}");
                expect_accessible(page, &when).await?;
                expect_fits(page, &when).await?;
                page.click("#orders-list li.order:last-child button").await?;
                page.show_all("#order-path[open] #path-hops li[data-state=done]", |hops| hops.len() == 5).await?;
                page.shows("#path-receipt", |text| text.contains("mmm")).await?;
                expect_accessible(page, &format!("{when}, with a path open")).await?;
                expect_fits(page, &format!("{when}, with a path open")).await?;
                page.click("#path-close").await?;
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn reduced_motion_stops_animations() -> Result<()> {
    const MOVING: &str = "return document.getAnimations().filter((one) => one.playState === 'running'
        && one.effect.getComputedTiming().duration > 1).map((one) => one.animationName ?? one.transitionProperty)";
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        page.prefer_reduced_motion().await?;
        page.load().await?;
        page.shows("#feed-state", |text| text.contains("live")).await?;
        page.fill("#burst-number", "20").await?;
        page.click("#burst-form button").await?;
        page.shows("#burst-note", |text| text.starts_with("20 of 20")).await?;
        shop.notified(20).await?;
        let moving: Vec<Value> = page.script(MOVING, &[]).await?;
        ensure!(moving.is_empty(), "{}", json!(moving));
        Ok(())
    })
    .await
}
