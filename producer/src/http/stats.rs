//! `GET /api/shards` and `GET /api/stats`: the shards, and the state of all parts.

use axum::{Json, extract::State};
use orderflow_core::Shard;
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
    /// Ranges of user ids, in order: an id with upper-case ASCII letters is in the last range whose `from` is not
    /// greater, by code points
    ranges: Vec<RangeView>,
}

#[derive(Serialize, ToSchema)]
pub struct ShardView {
    #[schema(example = "shard1")]
    name: String,
    /// Its users: spans of first characters, single users such as `@alice`, and `*` for all others, joined by `+`. The
    /// inner of two spans counts. Without `*`, all others are on the last shard
    #[schema(example = "A-M")]
    users: String,
}

#[derive(Serialize, ToSchema)]
pub struct RangeView {
    #[schema(example = "A")]
    from: String,
    #[schema(example = "shard1")]
    shard: String,
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
    let routes = app.maps.routes();
    let shards = routes.map.iter().map(|shard| ShardView { name: shard.name.clone(), users: shard.users() }).collect();
    let range = |(from, shard): (&str, &Shard)| RangeView { from: from.to_owned(), shard: shard.name.clone() };
    Json(ShardList { shards, ranges: routes.map.ranges().into_iter().map(range).collect() })
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
