//! `GET /api/config`: the configuration of this process that a page needs before it shows anything.

use axum::{Json, extract::State};

use super::{app::Shared, page_config::Config, problem::declare_responses};

declare_responses!(GetConfigProblems:);

/// Get the features and limits of this process
#[utoipa::path(
    get, path = "/api/config", tag = "process",
    responses(
        (status = 200, body = Config, description = "The configuration, which is fixed while the process runs"),
        GetConfigProblems,
    )
)]
pub async fn get_config(State(app): State<Shared>) -> Json<Config> {
    Json(app.config.clone())
}
