//! What the dashboard shows of the shards, and of everything else that is at work.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    app::Shared,
    problem::{Problem, declare_responses},
};
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

declare_responses!(ListShardsProblems:);

/// List the shards
#[utoipa::path(
    get, path = "/api/shards", tag = "shards",
    responses(
        (status = 200, body = ShardList, description = "All shards, in their order"),
        ListShardsProblems,
    )
)]
pub async fn list_shards(State(app): State<Shared>) -> Json<ShardList> {
    let shards = app.map.iter().map(|shard| ShardView { name: shard.name.clone(), users: shard.users() }).collect();
    Json(ShardList { shards })
}

declare_responses!(GetStatsProblems:);

/// How all parts do
///
/// Found out at most once a second, for all who ask. What does not answer in time is `up: false`, with the reason, and its
/// numbers are null.
#[utoipa::path(
    get, path = "/api/stats", tag = "process",
    responses(
        (status = 200, body = Snapshot, description = "As of `at`"),
        GetStatsProblems,
    )
)]
pub async fn get_stats(State(app): State<Shared>) -> Result<Json<Snapshot>, Problem> {
    app.stats.snapshot().await.map(Json).ok_or_else(|| Problem::no_answer_in_time(stats::LONGEST.as_secs()))
}
