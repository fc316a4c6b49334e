//! `GET /api/orders` and `GET /api/orders/{id}`: all shards are queried concurrently, and a shard that is down is
//! named.

use std::{collections::HashMap, time::Duration};

use axum::{Extension, Json, extract::State, response::Response};
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use orderflow_core::{OrderId, UserId};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use utoipa::ToSchema;

use super::{
    app::{App, Exposure, Shared},
    connection::Peer,
    cursor::Cursor,
    parameter::{IdOfPath, ListParameters, OrderParameters, whole},
    problem::{Problem, declare_responses},
    progress,
    view::{OrderView, receipt_status},
};
use crate::shard::{Position, ReadError, Shard, StoredOrder};

/// Orders in a page, unless the client asks for another number.
const DEFAULT_LIMIT: i64 = 50;
/// Most orders in a page.
const MAX_LIMIT: i64 = 500;

/// Most bytes of one order of a page, while the page is made: as rows of both shards, and as JSON.
const MOST_BYTES: usize = 4 * 1024;

#[derive(Serialize, ToSchema)]
pub struct OrderList {
    orders: Vec<OrderView>,
    /// Number of orders in this page
    count: usize,
    /// Cursor of the next page; absent on the last
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    /// Shards whose orders are missing from this page, or from a page before it
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unavailable_shards: Vec<String>,
}

declare_responses!(ListOrdersProblems: SHARD_UNAVAILABLE, OVERLOADED);

/// List orders, newest first
#[utoipa::path(
    get, path = "/api/orders", tag = "orders",
    params(
        ("user_id" = Option<String>, Query, min_length = 1, max_length = 100, pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$",
         description = "The user whose orders are listed; required on a public port"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 500, description = "Orders in a page; 50 by default"),
        ("cursor" = Option<String>, Query, pattern = "^A[Q-Za-f][A-Za-z0-9_-]{36}[AEIMQUYcgkosw048]$", description = "`next_cursor` of the previous page"),
        ("progress" = Option<bool>, Query, description = "Report the progress of each order, too"),
    ),
    responses(
        (status = 200, body = OrderList, description = "A page. A shard that is down is named in `unavailable_shards`."),
        ListOrdersProblems,
    )
)]
pub async fn list_orders(
    State(app): State<Shared>,
    Extension(exposure): Extension<Exposure>,
    Peer(peer): Peer,
    parameters: ListParameters,
) -> Result<Response, Problem> {
    let user = match parameters.user_id {
        Some(user) => Some(UserId::parse(user).map_err(|rule| Problem::invalid_parameter("user_id", rule))?),
        None if exposure == Exposure::Public => {
            return Err(Problem::invalid_parameter(
                "user_id",
                "is required on this port, which lists one user's orders",
            ));
        }
        None => None,
    };
    let limit = match parameters.limit.as_deref().map(whole::<i64>) {
        None => DEFAULT_LIMIT,
        Some(Some(limit)) if (1..=MAX_LIMIT).contains(&limit) => limit,
        Some(_) => return Err(Problem::invalid_parameter("limit", "must be a whole number from 1 to 500")),
    };
    let cursor = match parameters.cursor.as_deref().map(Cursor::decode) {
        None => None,
        Some(Some(cursor)) => Some(cursor),
        Some(None) => return Err(Problem::invalid_parameter("cursor", "must be a next_cursor of this API")),
    };

    let memory = app.memory.reserve(limit as usize * MOST_BYTES, peer).await?;
    // One more than the page, to know whether there is a next one.
    let before = cursor.map(|cursor| cursor.after);
    let (queried, answers): (Vec<&Shard>, Vec<_>) = match &user {
        Some(user) => {
            let (shard, answer) = of_user(&app, user, before, limit + 1).await?;
            (vec![shard], vec![answer])
        }
        None => {
            let queried: Vec<&Shard> = app.shards.iter().collect();
            let answers = join_all(queried.iter().map(|shard| shard.orders(before, limit + 1))).await;
            (queried, answers)
        }
    };
    let mut missing = cursor.map_or(0, |cursor| cursor.missing);
    let (mut found, mut errors): (Vec<StoredOrder>, Vec<ReadError>) = (Vec::new(), Vec::new());
    for (shard, answer) in queried.iter().zip(answers) {
        match answer {
            Ok(orders) => found.extend(orders),
            Err(error) => {
                missing |= shard.shard().number.bit();
                errors.push(error);
            }
        }
    }
    if errors.len() == queried.len() {
        return Err(Problem::shards_unavailable(&errors));
    }

    found.sort_unstable_by_key(|stored| std::cmp::Reverse((stored.order.created_at, stored.order.id)));
    let more = found.len() as i64 > limit;
    found.truncate(limit as usize);
    let last = found.last().map(|stored| Position { created_at: stored.order.created_at, id: stored.order.id });
    let next_cursor = last.filter(|_| more).map(|after| Cursor { after, missing }.encode());
    let is_missing = |shard: &&Shard| missing & shard.shard().number.bit() != 0;
    let progress = if parameters.progress { progress::determine(&app, &found).await } else { HashMap::new() };
    let view = |stored: StoredOrder| {
        let progress = progress.get(&stored.order.id).copied();
        OrderView::new(stored.order, receipt_status(stored.receipt_pending)).with(progress)
    };
    let orders: Vec<OrderView> = found.into_iter().map(view).collect();
    Ok(memory.carry(Json(OrderList {
        count: orders.len(),
        orders,
        next_cursor,
        unavailable_shards: app.shards.iter().filter(is_missing).map(|shard| shard.name().to_owned()).collect(),
    })))
}

/// The longest wait for the shard of a user who is moving.
const LONGEST_MOVE: Duration = Duration::from_secs(1);

/// Time between two checks for it.
const MOVE_INTERVAL: Duration = Duration::from_millis(5);

declare_responses!(GetOrderProblems: NOT_FOUND, SHARD_UNAVAILABLE);

/// Get one order
#[utoipa::path(
    get, path = "/api/orders/{id}", tag = "orders",
    params(
        ("id" = uuid::Uuid, Path, description = "The order's UUID"),
        ("progress" = Option<bool>, Query, description = "Report the progress of the order, too"),
    ),
    responses(
        (status = 200, body = OrderView, description = "The order"),
        GetOrderProblems,
    )
)]
pub async fn get_order(
    State(app): State<Shared>,
    IdOfPath(id): IdOfPath,
    parameters: OrderParameters,
) -> Result<Json<OrderView>, Problem> {
    let (stored, _) = find(&app, id).await?;
    let found = std::slice::from_ref(&stored);
    let progress = if parameters.progress { progress::determine(&app, found).await.remove(&id) } else { None };
    Ok(Json(OrderView::new(stored.order, receipt_status(stored.receipt_pending)).with(progress)))
}

/// Reads the orders of a user from the shard that stores them, wherever they move meanwhile.
async fn of_user<'a>(
    app: &'a App,
    user: &UserId,
    before: Option<Position>,
    limit: i64,
) -> Result<(&'a Shard, Result<Vec<StoredOrder>, ReadError>), Problem> {
    let deadline = Instant::now() + LONGEST_MOVE;
    loop {
        let routes = app.maps.routes();
        let (range, shard) = routes.of(user);
        let unavailable = |reason: &str| ReadError {
            shard: shard.name.clone(),
            reason: reason.to_owned(),
            is_down: false,
            is_crowded: false,
        };
        let Some(handle) = app.shards.numbered(shard.number) else {
            return Err(Problem::shards_unavailable(&[unavailable(
                "it is in a newer shard map, and not in SHARDS here",
            )]));
        };
        match handle.orders_of(user, range, before, limit).await {
            Ok(Some(orders)) => return Ok((handle, Ok(orders))),
            Err(error) => return Ok((handle, Err(error))),
            Ok(None) if Instant::now() < deadline => {
                handle.read_maps(&app.maps).await;
                sleep(MOVE_INTERVAL).await;
            }
            Ok(None) => return Ok((handle, Err(unavailable("the user is moving to another shard")))),
        }
    }
}

/// Finds an order and its shard. The first shard that has the order ends the search: only orders that no other shard
/// has wait for a shard that hangs.
pub async fn find(app: &App, id: OrderId) -> Result<(StoredOrder, Shard), Problem> {
    let ask = async |shard: &Shard| (shard.order(id).await, shard.clone());
    let mut answers: FuturesUnordered<_> = app.shards.iter().map(ask).collect();
    let mut errors = Vec::new();
    while let Some((answer, shard)) = answers.next().await {
        match answer {
            Ok(Some(stored)) => return Ok((stored, shard)),
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        Err(Problem::not_found(format!("there is no order {id}")))
    } else {
        Err(Problem::shards_unavailable(&errors))
    }
}
