//! Keyset paging: every order once, newest first over all shards, whatever is inserted in between.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Stack,
    api::{Api, user},
};
use reqwest::StatusCode;
use uuid::Uuid;

use crate::support::serving;

/// The sort key of the list: microseconds since 1970, and the id.
type Position = (i64, Uuid);

/// Returns the orders of the databases, newest first.
async fn expected(stack: &Stack, user: Option<&str>) -> Result<Vec<Uuid>> {
    const POSITIONS: &str = "SELECT (extract(epoch FROM created_at) * 1000000)::bigint, id FROM orders \
                             WHERE user_id = $1 OR $1 IS NULL";
    let mut positions: Vec<Position> = Vec::new();
    for shard in [1, 2] {
        positions.extend(
            sqlx::query_as::<_, Position>(POSITIONS).bind(user).fetch_all(&mut stack.shard(shard).await?).await?,
        );
    }
    positions.sort_unstable();
    Ok(positions.into_iter().rev().map(|(_, id)| id).collect())
}

/// Returns a page, and the cursor of the next.
async fn page(api: &Api, query: &str, cursor: Option<&str>) -> Result<(Vec<Uuid>, Option<String>)> {
    let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
    let reply = api.get(&format!("/api/orders?{query}{cursor}")).await?;
    ensure!(reply.status == StatusCode::OK, "{reply:?}");
    let list = reply.json();
    let orders = list["orders"].as_array().context("orders")?;
    ensure!(list["count"] == orders.len() && list["unavailable_shards"].is_null(), "{list}");
    let ids = orders.iter().map(|order| Ok(order["id"].as_str().context("id")?.parse()?)).collect::<Result<_>>()?;
    Ok((ids, list["next_cursor"].as_str().map(str::to_owned)))
}

/// Returns all pages. Each but the last must be full.
async fn pages(api: &Api, query: &str, limit: usize) -> Result<Vec<Uuid>> {
    let query = format!("{query}&limit={limit}");
    let (mut all, mut next) = page(api, &query, None).await?;
    let mut before = 0;
    while let Some(cursor) = next {
        ensure!(all.len() - before == limit, "a page that is not the last has {} orders", all.len() - before);
        before = all.len();
        let (more, following) = page(api, &query, Some(&cursor)).await?;
        ensure!(!more.is_empty(), "a cursor led to an empty page");
        all.extend(more);
        next = following;
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_every_order_once_and_newest_first() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    api.place_many(120).await?;
    let all = expected(&stack, None).await?;
    assert_eq!(all.len(), 120);

    assert_eq!(pages(&api, "", 50).await?, all);
    assert_eq!(pages(&api, "", 60).await?, all, "the last page is full");
    assert_eq!(pages(&api, "", 1).await?, all);
    assert_eq!(pages(&api, "", 500).await?, all);
    let (default, next) = page(&api, "", None).await?;
    assert_eq!(default, all[..50]);
    assert!(next.is_some());

    for user in [user(0), user(5)] {
        let of_user = expected(&stack, Some(&user)).await?;
        assert_eq!(of_user.len(), 3);
        assert_eq!(pages(&api, &format!("user_id={user}"), 2).await?, of_user, "{user}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_placed_between_two_pages_shift_nothing() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    api.place_many(20).await?;
    let before = expected(&stack, None).await?;

    let (mut all, mut next) = page(&api, "limit=8", None).await?;
    while let Some(cursor) = next {
        api.place_many(10).await?;
        let (more, following) = page(&api, "limit=8", Some(&cursor)).await?;
        all.extend(more);
        next = following;
    }
    assert_eq!(all, before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_the_same_time_are_not_lost_between_two_pages() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    api.place_many(20).await?;
    for shard in [1, 2] {
        sqlx::query("UPDATE orders SET created_at = '2026-01-01 12:00:00.000001Z'")
            .execute(&mut stack.shard(shard).await?)
            .await?;
    }
    assert_eq!(pages(&api, "", 3).await?, expected(&stack, None).await?);
    Ok(())
}

/// Covers the state after an import of old orders.
#[tokio::test(flavor = "multi_thread")]
async fn orders_from_before_1970_are_paged_like_others() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let acked = api.place_many(6).await?;
    for shard in [1, 2] {
        sqlx::query("UPDATE orders SET created_at = created_at - interval '100 years'")
            .execute(&mut stack.shard(shard).await?)
            .await?;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/orders?limit=1{cursor}")).await?;
        ensure!(page.status == reqwest::StatusCode::OK, "{page:?}");
        let page = page.json();
        let at = page["orders"][0]["created_at"].as_str().unwrap_or_default();
        ensure!(at.starts_with("19") && at.len() == 27, "{page}");
        seen.push(page["orders"][0]["id"].as_str().unwrap_or_default().to_owned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut expected: Vec<String> = acked.into_iter().map(|order| order.id).collect();
    expected.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, expected);
    Ok(())
}
