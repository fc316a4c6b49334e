//! The dots on the picture of the pipeline: they move along its lines, even when the lines move.

use anyhow::{Result, ensure};
use orderflow_testbed::{eventually, wait::PATIENCE};

use crate::{
    page::PHONE,
    support::{Shop, on_a_dashboard},
};

/// Keeps each dot at the end of its path: a dot that moves is gone before it can be checked.
const HOLD: &str = "new MutationObserver(() => document.querySelectorAll('.dot').forEach((dot) =>
    dot.getAnimations().forEach((trip) => {
        trip.pause();
        trip.currentTime = trip.effect.getTiming().duration - 1;
    }))).observe(document.getElementById('pipeline-picture'), {childList: true, subtree: true});";

/// Returns how far, in pixels, the dot of an event is from the part at the end of its path; null without a dot.
const AWAY: &str = "const dot = document.querySelector('.dot[data-carries=event]')?.getBoundingClientRect();
    if (!dot) return null;
    const { left, right, top, bottom } = document.querySelector('li.part.consumer').getBoundingClientRect();
    const [x, y] = [(dot.left + dot.right) / 2, (dot.top + dot.bottom) / 2];
    return Math.hypot(Math.max(left - x, 0, x - right), Math.max(top - y, 0, y - bottom));";

async fn expect_at_the_end(shop: &Shop, when: &str) -> Result<()> {
    eventually(&format!("{when} a dot at the consumer"), PATIENCE, async || {
        let away: Option<f64> = shop.page.script(AWAY, &[]).await?;
        ensure!(away.is_some_and(|away| away < 10.0), "{away:?} px away");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn dots_follow_the_lines_when_they_move() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        let page = &shop.page;
        page.script::<()>(HOLD, &[]).await?;
        shop.place("alice", "Keyboard").await?;
        expect_at_the_end(shop, "on a desktop").await?;
        page.show_on(PHONE).await?;
        expect_at_the_end(shop, "on a phone").await
    })
    .await
}
