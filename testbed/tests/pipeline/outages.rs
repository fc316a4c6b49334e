//! A dependency is down or frozen: orders are accepted as long as their shard answers, and everything arrives
//! afterwards.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::primitives::ByteStream;
use axum::extract::State;
use futures_util::{StreamExt, TryStreamExt, stream};
use orderflow_testbed::{
    Link, Producer, Proxy, Service, Stack, Versitygw,
    api::{Acked, Api, Reply, order_of},
    eventually, folder,
    product::Builder,
    versitygw,
    wait::PATIENCE,
};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep_until},
};

use crate::support::{dependencies_up, expect_each_exactly_once};

/// The time within which an order is answered whatever is down, which the demo could not promise. Longer than the order
/// timeout of 2 s.
const ANSWER: Duration = Duration::from_millis(2500);

/// Builds a producer with short leases, so that a test does not wait a minute for what a killed worker had claimed.
pub fn producer(stack: &Stack) -> Builder<Producer> {
    stack.producer().env("S3_TIMEOUT_MS", "500").env("RECEIPT_LEASE_MS", "5000")
}

/// Places the orders of 8 users, each of whom sends 25 orders one after the other.
pub async fn place_in_series(api: &Api, tag: &str) -> Result<Vec<Acked>> {
    let users = ["a", "f", "k", "m", "n", "r", "x", "é"].map(|letter| format!("{letter}-serial-{tag}"));
    let series = users.iter().map(async |user| {
        let mut acked = Vec::new();
        for sequence in 0..25 {
            let reply = api.place(user, None).await?;
            ensure!(reply.status == StatusCode::CREATED, "order {sequence} of {user}: {reply:?}");
            acked.push(reply.acked(sequence)?);
        }
        anyhow::Ok(acked)
    });
    Ok(futures_util::future::try_join_all(series).await?.concat())
}

fn kind(reply: &Reply) -> String {
    let kind = reply.json()["type"].as_str().unwrap_or_default().to_owned();
    kind.rsplit('/').next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_written_after_s3_comes_back() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let (producer, _consumer) = (producer(&stack).start().await?, stack.consumer().start().await?);
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;

    stack.object_store().kill();
    let acked = place_in_series(&api, "s3").await?;
    let reply = api.get(&format!("/api/orders/{}/receipt", acked[0].id)).await?;
    ensure!(reply.status == StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
    let order = api.get(&format!("/api/orders/{}", acked[0].id)).await?;
    ensure!(order.json()["receipt_status"] == "pending", "{order:?}");

    stack.object_store().start_again().await?;
    stack.provision().await?;
    expect_each_exactly_once(&stack, &acked).await
}

/// An object whose name is a prefix of the others' blocks them where objects are files: S3 refuses this user's receipts
/// and takes all others.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_s3_refuses_holds_up_no_other() -> Result<()> {
    let stack = Stack::shared().await?;
    let s3 = Versitygw::start(folder::for_test_process()?, "refusing-s3").await?;
    let (bucket, in_the_way) = ("refusing", "receipts/alice");
    s3.s3().create_bucket().bucket(bucket).send().await?;
    s3.s3().put_object().bucket(bucket).key(in_the_way).body(ByteStream::from_static(b"a file")).send().await?;
    let producer = producer(&stack)
        .env("S3_ENDPOINT", s3.endpoint())
        .env("S3_BUCKET", bucket)
        .env("AWS_ACCESS_KEY_ID", versitygw::ACCESS_KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", versitygw::SECRET_ACCESS_KEY)
        .start()
        .await?;
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;
    let status =
        async |id: &str| anyhow::Ok(api.get(&format!("/api/orders/{id}")).await?.json()["receipt_status"].clone());

    // This receipt is written first and alone, so that no other success shows that S3 is up.
    let refused = api.place("alice", None).await?.acked(0)?;
    eventually("the refusal to be reported", PATIENCE, async || {
        let ready: Value = api.client.get(format!("{}/readyz", producer.admin_url()?)).send().await?.json().await?;
        ensure!(ready["dependencies"]["s3"]["status"] == "down", "{ready}");
        Ok(())
    })
    .await?;
    let others = futures_util::future::try_join_all(
        ["bob", "carol", "dave"].map(async |user| api.place(user, None).await?.acked(0)),
    )
    .await?;
    for other in &others {
        eventually("the receipt of another user", PATIENCE, async || {
            ensure!(status(&other.id).await? == "stored", "{}", status(&other.id).await?);
            Ok(())
        })
        .await?;
    }
    ensure!(status(&refused.id).await? == "pending", "{}", status(&refused.id).await?);
    s3.s3().delete_object().bucket(bucket).key(in_the_way).send().await?;
    eventually("the receipt that was refused", PATIENCE, async || {
        ensure!(status(&refused.id).await? == "stored", "{}", status(&refused.id).await?);
        Ok(())
    })
    .await
}

/// An S3 that handles one request after the other, including those whose clients have gone. A real one cannot be slowed
/// down as precisely.
#[derive(Default)]
struct SlowS3 {
    turn: tokio::sync::Mutex<()>,
    done: AtomicUsize,
}

impl SlowS3 {
    /// The longest with which 10 requests fit into the 500 ms that the producers here wait.
    const WORK: Duration = Duration::from_millis(50);

    /// Returns its endpoint; it ends with the test's runtime.
    async fn serve(self: Arc<Self>) -> Result<String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let answer = async |State(s3): State<Arc<Self>>| {
            let work = tokio::spawn(async move {
                let _turn = s3.turn.lock().await;
                // The fault itself.
                sleep_until(Instant::now() + Self::WORK).await;
                s3.done.fetch_add(1, Ordering::Relaxed);
            });
            work.await.map_or(StatusCode::INTERNAL_SERVER_ERROR, |()| StatusCode::OK)
        };
        tokio::spawn(axum::serve(listener, axum::Router::new().fallback(answer).with_state(self)).into_future());
        Ok(endpoint)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_that_is_slower_than_the_orders_is_not_kept_busy_in_vain() -> Result<()> {
    const ORDERS: usize = 150;
    let stack = Stack::shared().await?;
    let s3 = Arc::new(SlowS3::default());
    let producer = producer(&stack).env("S3_ENDPOINT", &s3.clone().serve().await?).start().await?;
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;
    let orders = stream::iter(0..ORDERS).map(async |n| api.place(&format!("alice-{n}"), None).await?.acked(n));
    orders.buffer_unordered(16).try_collect::<Vec<_>>().await?;
    eventually("all receipts", PATIENCE, async || {
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM receipt_jobs").fetch_one(&mut stack.shard(1).await?).await?;
        ensure!(left == 0, "{left} are left");
        Ok(())
    })
    .await?;
    let done = s3.done.load(Ordering::Relaxed);
    ensure!((ORDERS..2 * ORDERS).contains(&done), "S3 was asked {done} times for {ORDERS} receipts");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_published_once_and_in_order_after_kafka_comes_back() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let (producer, _consumer) = (producer(&stack).start().await?, stack.consumer().start().await?);
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;

    let mut acked = place_in_series(&api, "before").await?;
    stack.kafka().kill();
    acked.extend(place_in_series(&api, "while").await?);
    stack.kafka().start_again().await?;
    acked.extend(place_in_series(&api, "after").await?);
    expect_each_exactly_once(&stack, &acked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_notices_that_kafka_and_s3_are_frozen() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let (producer, _consumer) = (producer(&stack).start().await?, stack.consumer().start().await?);
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;

    let mut acked = place_in_series(&api, "before").await?;
    stack.kafka().pause();
    stack.object_store().pause();
    acked.extend(place_in_series(&api, "frozen").await?);
    eventually("the frozen dependencies are named", PATIENCE, async || {
        let ready: Value = api.client.get(format!("{}/readyz", producer.admin_url()?)).send().await?.json().await?;
        ensure!(ready["ready"] == true, "not ready: {ready}");
        ensure!(ready["dependencies"]["kafka"]["status"] == "down", "{ready}");
        ensure!(ready["dependencies"]["s3"]["status"] == "down", "{ready}");
        Ok(())
    })
    .await?;
    stack.kafka().resume();
    stack.object_store().resume();
    acked.extend(place_in_series(&api, "after").await?);
    expect_each_exactly_once(&stack, &acked).await
}

#[derive(Clone, Copy, Debug)]
enum Outage {
    Stopped,
    Frozen,
}

/// Checks an outage of shard 2. Users of shard 1 are unaffected; users of shard 2 get a definite or an unknown outcome
/// in time; lists name the shard.
async fn shard2_is_gone(outage: Outage) -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    let (producer, _consumer) = (producer(&stack).start().await?, stack.consumer().start().await?);
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;
    let mut acked = place_in_series(&api, "before").await?;
    // On a busy machine a shard may be too slow for this page, and its cursor would then record that.
    let first_page = eventually("a page of both shards", PATIENCE, async || {
        let list = api.get("/api/orders?limit=1").await?.json();
        ensure!(list.get("unavailable_shards").is_none(), "{list}");
        Ok(list)
    })
    .await?;
    let second_page = first_page["next_cursor"].as_str().context("the page has no cursor")?.to_owned();

    match outage {
        Outage::Stopped => stack.postgres(2).stop().await?,
        Outage::Frozen => stack.postgres(2).pause(),
    }
    let mut unknown = 0;
    for number in 0..20 {
        let send = api
            .client
            .post(format!("{}/api/orders", api.url))
            .timeout(ANSWER)
            .header("content-type", "application/json")
            .body(order_of(&format!("zoe-{number}")));
        let response = send.send().await?;
        ensure!(response.headers().contains_key("retry-after"), "no Retry-After: {response:?}");
        ensure!(response.status() == StatusCode::SERVICE_UNAVAILABLE, "{response:?}");
        let problem: Value = response.json().await?;
        match problem["type"].as_str().and_then(|kind| kind.rsplit('/').next()) {
            Some("not-accepted") => {}
            Some("outcome-unknown") => {
                ensure!(problem["order_id"].is_string(), "{problem}");
                unknown += 1;
            }
            _ => anyhow::bail!("{problem}"),
        }
        let reply = api.place(&format!("alice-{number}"), None).await?;
        ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
        acked.push(reply.acked(number)?);
    }
    ensure!(
        unknown <= 2,
        "{unknown} unknown outcomes: only what a writer had in hand when the shard went may be unknown"
    );

    let list = api.get("/api/orders").await?;
    ensure!(
        list.status == StatusCode::OK && list.json()["unavailable_shards"] == serde_json::json!(["shard2"]),
        "{list:?}"
    );
    let cursor = list.json()["next_cursor"].as_str().unwrap_or_default().to_owned();
    let list = api.get("/api/orders?user_id=zara").await?;
    ensure!(list.status == StatusCode::SERVICE_UNAVAILABLE && kind(&list) == "shard-unavailable", "{list:?}");
    let order = api.get(&format!("/api/orders/{}", acked[0].id)).await?;
    ensure!(order.status == StatusCode::OK, "{order:?}");
    let order = api.get("/api/orders/00000000-0000-7000-8000-000000000000").await?;
    ensure!(order.status == StatusCode::SERVICE_UNAVAILABLE, "{order:?}");

    match outage {
        Outage::Stopped => stack.postgres(2).start_again().await?,
        Outage::Frozen => stack.postgres(2).resume(),
    }
    let back = eventually("shard 2 takes orders again", PATIENCE, async || {
        let reply = api.place("zara-back", None).await?;
        ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
        Ok(reply)
    })
    .await?;
    acked.push(back.acked(0)?);
    let list = api.get(&format!("/api/orders?cursor={cursor}")).await?;
    ensure!(
        list.json()["unavailable_shards"] == serde_json::json!(["shard2"]),
        "the cursor forgot the outage: {list:?}"
    );
    let list = api.get(&format!("/api/orders?cursor={second_page}")).await?;
    ensure!(list.json().get("unavailable_shards").is_none(), "{list:?}");
    expect_each_exactly_once(&stack, &acked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_shard_is_named_and_hurts_only_its_users() -> Result<()> {
    shard2_is_gone(Outage::Stopped).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_shard_is_named_and_hurts_only_its_users() -> Result<()> {
    shard2_is_gone(Outage::Frozen).await
}

/// A search for a missing order ends with the last shard's response or deadline; a search for an existing one ends when
/// it is found.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_found_without_waiting_for_a_frozen_shard() -> Result<()> {
    let stack = Stack::shared().await?;
    let port = stack.postgres(2).port();
    let to_shard2 = Proxy::start(port).await?;
    let dsn = stack.dsn(2).replace(&format!(":{port}/"), &format!(":{}/", to_shard2.port()));
    let producer = producer(&stack).env("PG_SHARD2_DSN", dsn).start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    let order = api.place("alice", None).await?.acked(0)?;
    let nowhere = "/api/orders/00000000-0000-7000-8000-000000000000";
    api.get(nowhere).await?.expect_problem(404, "not-found")?;

    to_shard2.set(Link::Stalled);
    tokio::select! {
        // In the order in which the responses are expected.
        biased;
        lost = api.get(nowhere) => anyhow::bail!("the missing order was answered first: {lost:?}"),
        found = api.order(&order.id) => found.map(drop),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_started_during_an_outage_serves_what_it_can_and_recovers() -> Result<()> {
    let stack = Stack::builder().own().start().await?;
    stack.kafka().kill();
    stack.object_store().kill();
    stack.postgres(2).stop().await?;
    let producer = producer(&stack).start().await?;
    let _consumer = stack.consumer().start().await?;
    producer.ready(PATIENCE).await?;
    let api = Api::new(&producer)?;

    let first = api.place("alice", None).await?;
    ensure!(first.status == StatusCode::CREATED, "{first:?}");
    let refused = api.place("zara", None).await?;
    ensure!(refused.status == StatusCode::SERVICE_UNAVAILABLE && kind(&refused) == "not-accepted", "{refused:?}");

    stack.postgres(2).start_again().await?;
    stack.kafka().start_again().await?;
    stack.object_store().start_again().await?;
    stack.provision().await?;
    let second = eventually("shard 2 takes orders", PATIENCE, async || {
        let reply = api.place("zara", None).await?;
        ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
        Ok(reply)
    })
    .await?;
    expect_each_exactly_once(&stack, &[first.acked(0)?, second.acked(0)?]).await
}
