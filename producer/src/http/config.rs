//! `GET /api/config`: what a page must know of this process before it shows anything.

use axum::{Json, extract::State};
use orderflow_core::{Money, ProductName, Quantity, UserId};
use serde::Serialize;
use utoipa::ToSchema;

use super::{app::Shared, problem::declare_responses};

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Config {
    /// Where the services of a local stack can be stopped and started; null where there is no such thing
    #[schema(example = "http://127.0.0.1:8082")]
    controls_url: Option<String>,
    /// Whether dead letters can be replayed here
    dead_letter_replay: bool,
    limits: Limits,
}

/// What an order must keep to
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Limits {
    /// Characters
    #[schema(example = 100)]
    user_id: usize,
    /// Characters
    #[schema(example = 255)]
    product_name: usize,
    #[schema(example = 2_147_483_647)]
    quantity: i32,
    /// Unit price, in cents
    #[schema(example = 9_999_999_999_i64)]
    price_cents: i64,
    /// Price times quantity, in cents
    #[schema(example = 1_000_000_000_000_000_i64)]
    total_cents: i64,
}

impl Config {
    pub fn of(settings: &crate::Settings) -> Self {
        Self {
            controls_url: settings.controls_url.clone(),
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

declare_responses!(GetConfigProblems:);

/// What this process allows
#[utoipa::path(
    get, path = "/api/config", tag = "process",
    responses(
        (status = 200, body = Config, description = "Fixed while the process runs"),
        GetConfigProblems,
    )
)]
pub async fn get_config(State(app): State<Shared>) -> Json<Config> {
    Json(app.config.clone())
}
