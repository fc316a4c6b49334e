//! The interactive reference of the API at `/docs`, under its policy.

use anyhow::Result;

use crate::support::{Shop, on_a_dashboard};

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_lists_every_operation_and_breaks_no_policy() -> Result<()> {
    on_a_dashboard(async |shop: &Shop| {
        shop.page.load_path("/docs/").await?;
        for operation in ["#operations-orders-place_order", "#operations-dead_letters-replay_dead_letters"] {
            shop.page.shows(operation, |text| text.contains("/api/")).await?;
        }
        Ok(())
    })
    .await
}
