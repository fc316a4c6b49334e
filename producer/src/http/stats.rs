//! What the dashboard shows of the shards, and of everything else that is at work.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{app::Shared, problem::Problem};
use crate::stats::{self, Snapshot};

#[derive(Serialize, ToSchema)]
pub struct ShardList {
    shards: Vec<ShardView>,
}

#[derive(Serialize, ToSchema)]
pub struct ShardView {
    #[schema(example = "shard1")]
    name: String,
    /// First letters of its users; who is named by no shard is on the last
    #[schema(example = "A-M")]
    users: String,
}

/// List the shards
#[utoipa::path(
    get, path = "/api/shards", tag = "shards",
    responses(
        (status = 200, body = ShardList, description = "All shards, in their order"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "An unknown parameter"),
    )
)]
pub async fn list_shards(State(app): State<Shared>) -> Json<ShardList> {
    let shards = app.map.iter().map(|shard| ShardView { name: shard.name.clone(), users: shard.users() }).collect();
    Json(ShardList { shards })
}

/// How all parts do
///
/// Found out at most once a second, for all who ask. What does not answer in time is `up: false`, with the reason, and its
/// numbers are null.
#[utoipa::path(
    get, path = "/api/stats", tag = "process",
    responses(
        (status = 200, body = Snapshot, description = "As of `at`"),
        (status = 400, body = Problem, content_type = "application/problem+json", description = "An unknown parameter"),
        (status = 503, body = Problem, content_type = "application/problem+json", description = "No answer in time"),
    )
)]
pub async fn get_stats(State(app): State<Shared>) -> Result<Json<Snapshot>, Problem> {
    app.stats.snapshot().await.map(Json).ok_or_else(|| Problem::no_answer_in_time(stats::LONGEST.as_secs()))
}
