//! The producer's CPU beside that of a bare handler: the same framework and allocator, the same request and response,
//! and no work in between.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use axum::{Json, Router, http::StatusCode, http::header, response::IntoResponse, routing::post};
use orderflow_testbed::{Launch, Process, Service, eventually, folder, http, port};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    Effort,
    backing::{ALL, Backing, NO_S3, PATIENCE, Reach, SHARDS_ONLY, settled},
    post,
    report::Report,
    series::Series,
    usage,
};

/// Orders per second: a rate below the limit of both.
const RATE: u32 = 3000;
const CONNECTIONS: u32 = 64;

#[derive(Deserialize)]
struct NewOrder {
    user_id: String,
    product_name: String,
    quantity: i32,
    price: serde_json::Number,
}

/// The fields of the producer's response.
#[derive(Serialize)]
struct Answer {
    order: Order,
}

#[derive(Serialize)]
struct Order {
    id: Uuid,
    user_id: String,
    product_name: String,
    quantity: i32,
    price: serde_json::Number,
    status: &'static str,
    receipt_s3_key: String,
    shard: &'static str,
    created_at: &'static str,
}

/// Serves the bare handler until it is killed.
pub async fn serve(port: u16) -> Result<()> {
    let place = async |Json(order): Json<NewOrder>| {
        let id = Uuid::now_v7();
        let receipt_s3_key = format!("receipts/{}/{id}.txt", order.user_id);
        let NewOrder { user_id, product_name, quantity, price } = order;
        let (status, shard, created_at) = ("created", "shard1", "2026-01-01T00:00:00.000000Z");
        let order = Order { id, user_id, product_name, quantity, price, status, receipt_s3_key, shard, created_at };
        (StatusCode::CREATED, [(header::LOCATION, format!("/api/orders/{id}"))], Json(Answer { order })).into_response()
    };
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("listen")?;
    axum::serve(listener, Router::new().route("/api/orders", post(place))).await.context("serve")
}

pub async fn compare(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    report.section(
        "CPU of the producer per order",
        "From the request to published and deleted, with Kafka there and S3 away, and then with receipts too, at 3,000 orders/s over 64 \
         connections (open loop), beside a bare axum handler that parses the same JSON and answers the same.",
    );
    let (mut accepted, mut published, mut receipted, mut theirs) = <(Series, Series, Series, Series)>::default();
    for _ in 0..effort.rounds {
        theirs.push(of_bare_handler(backing, effort.length).await?);
        accepted.push(measure_producer(backing, SHARDS_ONLY, &[], effort.length).await?);
        published.push(measure_producer(backing, NO_S3, &[], effort.length).await?);
        receipted.push(measure_producer(backing, ALL, &[], effort.length).await?);
    }
    report.head(&["", "µs per order", "over the bare handler's"]);
    report.row(["bare handler".to_owned(), theirs.to_string(), String::new()]);
    for (name, ours) in [
        ("producer: accepted", accepted),
        ("producer: accepted, published, deleted", published),
        ("producer: with its receipt too", receipted),
    ] {
        report.row([name.to_owned(), ours.to_string(), ours.over(&theirs).to_string()]);
    }
    Ok(())
}

/// Measures the producer until all that it can reach is done.
pub async fn measure_producer(
    backing: &Backing,
    reach: Reach,
    settings: &[(&str, &str)],
    length: Duration,
) -> Result<f64> {
    backing.empty().await?;
    let producer = backing.producer_with(reach, settings).await?;
    if reach.kafka {
        post::wait_for_relays(&producer).await?;
    }
    let before = usage::cpu(producer.pid())?;
    let began = Instant::now();
    let reached = post::post(&producer.url()?, CONNECTIONS, RATE, length).await?;
    // The second of warm-up was sent and used CPU as well.
    let orders = reached.rate * began.elapsed().as_secs_f64();
    if reach.kafka {
        settled(backing, reach).await?;
    }
    Ok((usage::cpu(producer.pid())? - before) * 1e6 / orders)
}

async fn of_bare_handler(backing: &Backing, length: Duration) -> Result<f64> {
    let port = port::free()?;
    let this = std::env::current_exe().context("find this program")?;
    let log = folder::log(backing.folder(), "handler")?;
    let launch = Launch::new("handler", this, log).arguments(["handler", &port.to_string()]);
    let handler = Process::start(launch)?;
    let url = format!("http://127.0.0.1:{port}");
    eventually("the bare handler", PATIENCE, async || {
        http::client().get(&url).send().await.map(drop).context("query the bare handler")
    })
    .await?;
    let before = usage::cpu(handler.pid())?;
    let began = Instant::now();
    let reached = post::post(&url, CONNECTIONS, RATE, length).await?;
    let orders = reached.rate * began.elapsed().as_secs_f64();
    Ok((usage::cpu(handler.pid())? - before) * 1e6 / orders)
}
