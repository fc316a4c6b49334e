//! What the dashboard shows of the shards.

use axum::{Json, extract::State};
use futures_util::future::join_all;
use serde::Serialize;
use utoipa::ToSchema;

use super::App;

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
#[utoipa::path(get, path = "/api/shards", tag = "shards", responses((status = 200, body = ShardList, description = "All shards, in their order")))]
pub async fn list_shards(State(app): State<App>) -> Json<ShardList> {
    let shards = app.map.iter().map(|shard| ShardView { name: shard.name.clone(), users: shard.users() }).collect();
    Json(ShardList { shards })
}

#[derive(Serialize, ToSchema)]
pub struct Stats {
    shards: Vec<ShardStats>,
}

#[derive(Serialize, ToSchema)]
pub struct ShardStats {
    #[schema(example = "shard1")]
    name: String,
    #[schema(example = "A-M")]
    users: String,
    up: bool,
    /// Events that wait to be published, counted up to 10000; null when the shard is down
    outbox: Option<i64>,
    /// Receipts that wait to be written, counted up to 10000; null when the shard is down
    receipt_jobs: Option<i64>,
}

/// How much work waits in each shard
#[utoipa::path(get, path = "/api/stats", tag = "shards", responses((status = 200, body = Stats, description = "All shards, in their order")))]
pub async fn get_stats(State(app): State<App>) -> Json<Stats> {
    let asked = app.shards.iter().map(async |shard| {
        let backlog = shard.backlog().await.ok();
        ShardStats {
            name: shard.name().to_owned(),
            users: shard.shard().users(),
            up: shard.is_up() && backlog.is_some(),
            outbox: backlog.map(|backlog| backlog.outbox),
            receipt_jobs: backlog.map(|backlog| backlog.receipt_jobs),
        }
    });
    Json(Stats { shards: join_all(asked).await })
}
