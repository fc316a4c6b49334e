//! Clients that hold what they were given: unread lists, bodies that do not end, connections, feeds. Memory,
//! connections and the log stay bounded, and other clients are served.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, future::try_join_all, stream};
use orderflow_testbed::{
    Service, Stack,
    api::{Api, order_of},
    eventually, http, port,
    wait::PATIENCE,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::support::{dependencies_up, readiness};

/// The smallest `BODY_MEMORY_MB`.
const MEMORY: usize = 8 * 1024 * 1024;

const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const HOSTILE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// Connects from an address of the loopback network, with the smallest receive buffer.
async fn connect(url: &str, from: Ipv4Addr) -> Result<TcpStream> {
    let address: SocketAddr = url.strip_prefix("http://").context("the address of a server")?.parse()?;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    socket.bind(SocketAddr::from((from, 0)))?;
    Ok(socket.connect(address).await?)
}

async fn get(client: &mut TcpStream, path: &str) -> Result<()> {
    Ok(client.write_all(format!("GET {path} HTTP/1.1\r\nhost: orderflow\r\n\r\n").as_bytes()).await?)
}

/// Reads the status of the next response, and nothing after it.
async fn status(client: &mut TcpStream) -> Result<String> {
    let mut status = [0; 12];
    client.read_exact(&mut status).await?;
    let status = std::str::from_utf8(&status)?;
    Ok(status.strip_prefix("HTTP/1.1 ").context("an answer without a status")?.to_owned())
}

/// Returns how many log lines were dropped for one reason, from `/metrics`.
async fn dropped_lines(admin_url: &str, reason: &str) -> Result<usize> {
    let metrics = http::client().get(format!("{admin_url}/metrics")).send().await?.text().await?;
    let name = format!("orderflow_log_lines_dropped_total{{reason=\"{reason}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    Ok(value.with_context(|| format!("no {name}"))?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_lists_stay_within_the_memory_for_bodies() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("BODY_MEMORY_MB", "8").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    let user = "a".repeat(100);
    let fill = format!(
        "INSERT INTO orders (id, user_id, product_name, quantity, price, status, receipt_s3_key, created_at, updated_at) \
         SELECT gen_random_uuid(), '{user}', repeat('x', 255), 2, 29.99, 'created', 'receipts/{user}/' || n || '.txt', \
         now(), now() FROM generate_series(1, 500) AS n"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(fill)).execute(&mut stack.shard(1).await?).await?;
    let path = format!("/api/orders?user_id={user}&limit=500");
    let whole = api.get(&path).await?;
    ensure!(whole.status == 200 && whole.json()["count"] == 500, "{whole:?}");
    ensure!(whole.header("content-length").is_some(), "{:?}", whole.headers);

    let unread = Mutex::new(Vec::new());
    eventually("a list to be refused", PATIENCE, async || {
        // Few at once, so that none of these is refused.
        for _ in 0..3 {
            let mut client = connect(&api.url, HOSTILE).await?;
            get(&mut client, &path).await?;
            unread.lock().expect("no test panics with it").push(client);
        }
        let refused = api.get(&path).await?;
        refused.expect_problem(503, "overloaded")?;
        ensure!(refused.header("retry-after").is_some(), "{refused:?}");
        Ok(())
    })
    .await?;
    for user in ["alice", "zara"] {
        let placed = api.place(user, None).await?;
        ensure!(placed.status == 201, "{placed:?}");
        api.order(&placed.acked(0)?.id).await?;
    }
    drop(unread);
    eventually("the list to be served again", PATIENCE, async || {
        let reply = api.get(&path).await?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    })
    .await?;
    let log = producer.process().log_since_start();
    ensure!(!log.contains("answered"), "a client's own doing is in the log: {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_bodies_stay_within_the_memory_for_bodies() -> Result<()> {
    const LARGEST: usize = 64 * 1024;
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("BODY_MEMORY_MB", "8").start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    let large = order_of("alice").replacen('{', &format!("{{\"note\":\"{}\",", "x".repeat(LARGEST - 1024)), 1);
    let accepted = api.post(large.clone(), None).await?;
    ensure!(accepted.status == 201, "{accepted:?}");

    let held = eventually("a large body to be refused", PATIENCE, async || {
        let held = try_join_all((0..MEMORY / LARGEST + 40).map(async |_| {
            let mut client = connect(&api.url, HOSTILE).await?;
            let head = format!(
                "POST /api/orders HTTP/1.1\r\nhost: orderflow\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                large.len()
            );
            client.write_all(head.as_bytes()).await?;
            client.write_all(&large.as_bytes()[..8 * 1024]).await?;
            anyhow::Ok(client)
        }))
        .await?;
        let refused = api.post(large.clone(), None).await?;
        refused.expect_problem(503, "overloaded")?;
        ensure!(refused.header("retry-after").is_some(), "{refused:?}");
        Ok(held)
    })
    .await?;
    let placed = api.place("alice", None).await?;
    ensure!(placed.status == 201, "{placed:?}");
    drop(held);
    eventually("a large body to be read again", PATIENCE, async || {
        let reply = api.post(large.clone(), None).await?;
        ensure!(reply.status == 201, "{reply:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_limited_to_its_share() -> Result<()> {
    let stack = Stack::shared().await?;
    let settings = [("ADDRESS_SHARE", "50"), ("MAX_CONNECTIONS", "8"), ("MAX_FEEDS", "4")];
    let builder = settings.iter().fold(stack.producer(), |builder, (name, value)| builder.env(*name, *value));
    let producer = builder.start().await?;
    let url = producer.url()?;
    let mut hostile = Vec::new();
    for number in 0..4 {
        let mut client = connect(&url, HOSTILE).await?;
        get(&mut client, "/api/feed").await?;
        assert_eq!(status(&mut client).await?, if number < 2 { "200" } else { "503" }, "feed {number}");
        hostile.push(client);
    }
    let mut refused = String::new();
    connect(&url, HOSTILE).await?.read_to_string(&mut refused).await?;
    ensure!(refused.starts_with("HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n"), "{refused:?}");
    let metrics = http::client().get(format!("{}/metrics", producer.admin_url()?)).send().await?.text().await?;
    ensure!(metrics.contains("\norderflow_connections_refused_total 1\n"), "{metrics}");
    ensure!(metrics.contains("\norderflow_connections 4\n"), "{metrics}");

    let mut honest = connect(&url, HONEST).await?;
    get(&mut honest, "/api/feed").await?;
    assert_eq!(status(&mut honest).await?, "200");
    drop(hostile);
    eventually("a place for the address", PATIENCE, async || {
        let mut client = connect(&url, HOSTILE).await?;
        get(&mut client, "/health").await?;
        let status = status(&mut client).await?;
        ensure!(status == "200", "{status}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_admin_port_block_no_probe() -> Result<()> {
    const HALF_HEADS: usize = 300;
    /// The number of connections that may be open.
    const SERVED: usize = 64;
    let stack = Stack::shared().await?;
    let producer = stack.producer().start().await?;
    let admin = producer.admin_url()?;
    let clients = try_join_all((0..HALF_HEADS).map(async |_| {
        let mut client = connect(&admin, HOSTILE).await?;
        client.write_all(b"GET /metrics HTTP/1.1\r\nhost: orde").await?;
        anyhow::Ok(client)
    }));
    let clients = clients.await?;
    let is_open = |client: &&TcpStream| {
        let read = client.try_read(&mut [0; 64]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    eventually("the oldest connections to end", PATIENCE, async || {
        for path in ["livez", "metrics"] {
            let probed = http::client().get(format!("{admin}/{path}")).send().await?;
            ensure!(probed.status() == 200, "{path}: {probed:?}");
        }
        let open = clients.iter().filter(is_open).count();
        ensure!(open <= SERVED, "{open} of {HALF_HEADS} are open");
        Ok(())
    })
    .await
}

/// The shard is down: no server listens at its address.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_failed_requests_do_not_flood_the_log() -> Result<()> {
    const REQUESTS: usize = 3_000;
    let stack = Stack::shared().await?;
    let nowhere = format!("postgres://orders:orders@127.0.0.1:{}/orders", port::free()?);
    let producer = stack.producer().env("PG_SHARD1_DSN", nowhere).start().await?;
    eventually("shard 1 to be down", PATIENCE, async || {
        let shard = readiness(&producer).await?.json()["dependencies"]["shard1"].clone();
        ensure!(shard["status"] == "down", "{shard}");
        Ok(())
    })
    .await?;
    let api = Api::new(&producer)?;
    let refused: Vec<Result<()>> = stream::iter(0..REQUESTS)
        .map(async |_| api.place("alice", None).await?.expect_problem(503, "not-accepted").map(drop))
        .buffer_unordered(16)
        .collect()
        .await;
    refused.into_iter().collect::<Result<()>>()?;
    let admin = producer.admin_url()?;
    eventually("each line to be written or counted", PATIENCE, async || {
        let written = producer.process().log_since_start().matches("answered").count();
        let dropped = dropped_lines(&admin, "rate_limit").await?;
        ensure!(dropped > 0 && written + dropped == REQUESTS, "{written} written, {dropped} dropped");
        Ok(())
    })
    .await?;
    assert_eq!(dropped_lines(&admin, "slow_output").await?, 0);
    Ok(())
}
