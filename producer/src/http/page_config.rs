//! The configuration of this process that a page needs.

use orderflow_core::{Money, ProductName, Quantity, UserId};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Config {
    /// Origin of the controls that stop and start the services of a local stack; null without such a stack
    #[schema(example = "http://127.0.0.1:8082")]
    controls_url: Option<String>,
    /// Address of a trace, with `{trace_id}` in it; null if none is configured
    #[schema(example = "http://jaeger.example/trace/{trace_id}")]
    trace_url_template: Option<String>,
    /// True if this process may replay dead letters
    dead_letter_replay: bool,
    limits: Limits,
}

/// Limits of an order
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Limits {
    /// Most characters of a user
    #[schema(example = 100)]
    user_id: usize,
    /// Most characters of a product
    #[schema(example = 255)]
    product_name: usize,
    /// Largest quantity
    #[schema(example = 2_147_483_647)]
    quantity: i32,
    /// Largest unit price, in cents
    #[schema(example = 9_999_999_999_i64)]
    price_cents: i64,
    /// Largest price times quantity, in cents
    #[schema(example = 1_000_000_000_000_000_i64)]
    total_cents: i64,
}

impl Config {
    pub fn links_to_traces(&self) -> bool {
        self.trace_url_template.is_some()
    }

    pub fn new(settings: &crate::Settings) -> Self {
        Self {
            controls_url: settings.controls_url.clone(),
            trace_url_template: settings.trace_url_template.clone(),
            dead_letter_replay: settings.dead_letter_replay,
            limits: Limits {
                user_id: UserId::MAX_CHARACTERS,
                product_name: ProductName::MAX_CHARACTERS,
                quantity: Quantity::MAX,
                price_cents: Money::MAX_PRICE.cents(),
                total_cents: Money::MAX_TOTAL.cents(),
            },
        }
    }
}
