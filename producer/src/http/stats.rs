//! `GET /api/shards` and `GET /api/stats`: the shards, and the state of all parts.

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
    /// First letters of its users; users outside all ranges are on the last shard
    #[schema(example = "A-M")]
    users: String,
}

declare_responses!(ListShardsProblems:);

/// List the shards
#[utoipa::path(
    get, path = "/api/shards", tag = "shards",
    responses(
        (status = 200, body = ShardList, description = "All shards, in the order of the shard map"),
        ListShardsProblems,
    )
)]
pub async fn list_shards(State(app): State<Shared>) -> Json<ShardList> {
    let shards = app.map.iter().map(|shard| ShardView { name: shard.name.clone(), users: shard.users() }).collect();
    Json(ShardList { shards })
}

declare_responses!(GetStatsProblems:);

/// Get the state of all parts
///
/// All parts are queried at most once a second, however many clients ask. A part that does not answer in time has `up:
/// false`, a reason, and null in place of its numbers.
#[utoipa::path(
    get, path = "/api/stats", tag = "process",
    responses(
        (status = 200, body = Snapshot, description = "The state, as of `at`"),
        GetStatsProblems,
    )
)]
pub async fn get_stats(State(app): State<Shared>) -> Result<Json<Snapshot>, Problem> {
    app.stats.snapshot().await.map(Json).ok_or_else(|| Problem::no_answer_in_time(stats::LONGEST.as_secs()))
}
