//! SIGTERM: requests in flight are answered, answered orders are stored, and the process ends within its grace period.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::{join, join_all};
use orderflow_testbed::{
    Service, Stack,
    api::{Api, order_of, user},
    eventually, port,
    wait::PATIENCE,
};
use reqwest::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{dependencies_up, readiness, serving, stored};

/// The grace period that the product promises; Kubernetes kills after 30 s.
const GRACE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn every_order_answered_by_a_producer_that_stops_is_stored() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let answered = AtomicUsize::new(0);
    let clients = join_all((0..16).map(async |number| {
        let mut ids = Vec::new();
        // A connection that is refused or closed without a response ends the loop; a response must be a success.
        while let Ok(reply) = api.place(&user(number), None).await {
            ensure!(reply.status == StatusCode::CREATED, "{reply:?}");
            ids.push(reply.acked(0)?.id);
            answered.fetch_add(1, Ordering::Relaxed);
        }
        Ok(ids)
    }));
    let stop = async {
        eventually("orders to flow", PATIENCE, async || answered.load(Ordering::Relaxed) >= 100).await?;
        producer.process().terminate(GRACE).await
    };
    let (clients, status) = join(clients, stop).await;
    assert_eq!(status?.code(), Some(0));

    let mut rows = HashSet::new();
    for shard in [1, 2] {
        rows.extend(stored(&stack, shard).await?.into_iter().map(|(id, _)| id));
    }
    for id in clients.into_iter().collect::<Result<Vec<_>>>()?.concat() {
        assert!(rows.contains(&id), "order {id} was answered 201 and is not stored");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_without_kafka_and_s3_stops_gracefully_too() -> Result<()> {
    let stack = Stack::shared().await?;
    let nowhere = format!("127.0.0.1:{}", port::free()?);
    let producer = stack.producer().env("S3_ENDPOINT", format!("http://{nowhere}")).env("KAFKA_BROKERS", nowhere);
    let producer = producer.start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let acked = Api::new(&producer)?.place_many(10).await?;
    assert_eq!(producer.process().terminate(GRACE).await?.code(), Some(0));
    assert_eq!(stored(&stack, 1).await?.len() + stored(&stack, 2).await?.len(), acked.len());
    Ok(())
}

/// A request whose body is incomplete keeps the producer in its drain for as long as the test wants.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_producer_is_unready_refuses_connections_and_answers_open_requests() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let address = api.url.strip_prefix("http://").context("the API's address")?;
    let body = order_of("alice");
    let (begin, end) = body.split_at(body.len() / 2);

    let mut client = TcpStream::connect(address).await?;
    let head = format!(
        "POST /api/orders HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).await?;
    let mut continue_line = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    client.read_exact(&mut continue_line).await?;
    assert_eq!(&continue_line, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(begin.as_bytes()).await?;

    let stopping = async {
        eventually("/readyz to report that it stops", PATIENCE, async || {
            let reply = readiness(&producer).await?;
            ensure!(reply.status == StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
            ensure!(reply.json()["reasons"] == serde_json::json!(["stopping"]), "{reply:?}");
            Ok(())
        })
        .await?;
        eventually("new connections to be refused", PATIENCE, async || TcpStream::connect(address).await.is_err())
            .await?;
        client.write_all(end.as_bytes()).await?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let (answer, status) = join(stopping, producer.process().terminate(GRACE)).await;
    let answer = answer?;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(status?.code(), Some(0));
    assert_eq!(stored(&stack, 1).await?.len(), 1);
    Ok(())
}
