//! The parts that all requests share, and what the producer serves beside orders: health, description, page, metrics.

use std::collections::{BTreeSet, VecDeque};

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Producer, Stack,
    api::{Api, order_of},
    http,
    wait::PATIENCE,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{dependencies_up, readiness, serving};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../producer/tests/snapshots/openapi__openapi.snap");

#[tokio::test(flavor = "multi_thread")]
async fn health_is_the_demos() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let reply = api.get("/health").await?;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.text, r#"{"status":"healthy","service":"orderflow-producer"}"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_id_is_echoed_and_any_other_replaced() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let answered = async |path: &str, id: Option<&[u8]>| {
        let mut request = api.request("GET", path);
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        let reply = api.send(request).await?;
        Ok::<_, anyhow::Error>(reply.header("x-request-id").context("no X-Request-Id")?.to_owned())
    };
    let is_ours = |id: &str| uuid::Uuid::parse_str(id).is_ok();
    let long = [b'x'; 129];
    for path in ["/health", "/api/orders?limit=0", "/nothing"] {
        assert!(is_ours(&answered(path, None).await?), "{path}");
        assert_eq!(answered(path, Some(b"Trace-1_2.3:4")).await?, "Trace-1_2.3:4");
        assert_eq!(answered(path, Some(&long[..128])).await?.as_bytes(), &long[..128]);
        for odd in [b"".as_slice(), b"a b", b"a\"b", b"a<b>", b"a,b", "é".as_bytes(), &long] {
            assert!(is_ours(&answered(path, Some(odd)).await?), "{path} {}", String::from_utf8_lossy(odd));
        }
    }
    assert_ne!(answered("/health", None).await?, answered("/health", None).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_served_description_matches_the_snapshot() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let reply = api.get("/openapi.json").await?;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let snapshot = std::fs::read_to_string(SNAPSHOT).context("read the snapshot of the description")?;
    // The snapshot's content is below the second line of dashes.
    let agreed = snapshot.splitn(3, "---\n").nth(2).context("a snapshot has a head")?;
    assert_eq!(reply.json(), serde_json::from_str::<Value>(agreed)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_producer_serves_the_page_and_all_its_links() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let mut seen = BTreeSet::from(["/".to_owned()]);
    let mut unread = VecDeque::from(["/".to_owned()]);
    while let Some(path) = unread.pop_front() {
        let reply = api.get(&path).await?;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        let expected = match path.rsplit_once('.').map(|(_, extension)| extension) {
            None => "text/html; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            Some(other) => panic!("a file with {other:?} at its end: {path}"),
        };
        assert_eq!(reply.header("content-type"), Some(expected), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy = reply.header("content-security-policy").context("no policy")?;
        for rule in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"] {
            assert!(policy.contains(rule), "{path}: {policy}");
        }
        for link in links(&reply.text) {
            let link = match link.strip_prefix("./") {
                Some(beside) => format!("/dashboard/{beside}"),
                None => link,
            };
            if link.starts_with('#') || link.starts_with("/api/") {
                continue;
            }
            ensure!(link.starts_with('/') && !link.starts_with("//"), "{path} links another origin: {link}");
            if seen.insert(link.clone()) {
                unread.push_back(link);
            }
        }
    }
    for needed in ["/dashboard/main.js", "/dashboard/style.css", "/dashboard/icon.svg", "/dashboard/orders.js"] {
        assert!(seen.contains(needed), "{needed} is not linked: {seen:?}");
    }
    Ok(())
}

/// The first bytes of gzip output.
const GZIP: [u8; 2] = [0x1f, 0x8b];

#[tokio::test(flavor = "multi_thread")]
async fn only_the_page_is_compressed_on_request() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, _) = serving(&stack).await?;
    let url = producer.url()?;
    let get = async |path: &str, encoding: &str| {
        let answer = http::client().get(format!("{url}{path}")).header("accept-encoding", encoding).send().await?;
        anyhow::Ok(answer.error_for_status()?)
    };
    let header = |answer: &reqwest::Response, name: &str| {
        answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_lowercase()
    };
    for path in ["/", "/dashboard/orders.js", "/dashboard/style.css"] {
        let (plain, packed) = (get(path, "gzip;q=0").await?, get(path, "br, gzip").await?);
        assert_eq!(header(&packed, "content-encoding"), "gzip", "{path}");
        assert_eq!(header(&plain, "content-encoding"), "", "{path}");
        // A cache must not return one form to a client that requested the other.
        assert!([&plain, &packed].iter().all(|answer| header(answer, "vary").contains("accept-encoding")), "{path}");
        assert_eq!(header(&plain, "content-type"), header(&packed, "content-type"), "{path}");
        let (plain, packed) = (plain.bytes().await?, packed.bytes().await?);
        assert!(packed.starts_with(&GZIP) && packed.len() * 2 < plain.len(), "{path}: {} bytes", packed.len());
    }
    for path in ["/api/feed", "/api/config", "/api/orders", "/openapi.json"] {
        assert_eq!(header(&get(path, "gzip").await?, "content-encoding"), "", "{path}");
    }
    Ok(())
}

/// Returns the references of a page, a module or a style sheet. Text built at run time is not seen here.
fn links(text: &str) -> Vec<String> {
    let openings = [("src=\"", '"'), ("href=\"", '"'), ("from '", '\''), ("import '", '\''), ("url(", ')')];
    let mut links = Vec::new();
    for (opening, closing) in openings {
        for (_, rest) in text.match_indices(opening).map(|(at, _)| text.split_at(at + opening.len())) {
            let link = rest.split(closing).next().unwrap_or_default().trim_matches(['"', '\'']);
            links.push(link.to_owned());
        }
    }
    links
}

async fn metrics(producer: &Producer) -> Result<String> {
    let answer = http::client().get(format!("{}/metrics", producer.admin_url()?)).send().await?;
    ensure!(answer.status() == StatusCode::OK, "{answer:?}");
    Ok(answer.text().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_and_requests_are_counted_by_outcome() -> Result<()> {
    let stack = Stack::shared().await?;
    let (producer, api) = serving(&stack).await?;
    let body = order_of("alice");
    api.post(body.as_str(), None).await?;
    api.post(body.as_str(), Some("key")).await?;
    api.post(body.as_str(), Some("key")).await?;
    api.post(body.replace("149.99", "1"), Some("key")).await?;
    api.post("{}", None).await?;
    api.get("/one/path").await?;
    api.get("/another/path").await?;
    for method in ["BREW", "STEEP"] {
        api.send(api.request(method, "/health")).await?;
    }

    let text = metrics(&producer).await?;
    for line in [
        r#"orderflow_orders_total{outcome="created"} 2"#,
        r#"orderflow_orders_total{outcome="replayed"} 1"#,
        r#"orderflow_orders_total{outcome="key_reused"} 1"#,
        r#"orderflow_orders_total{outcome="invalid"} 1"#,
        r#"orderflow_http_request_seconds_count{method="POST",route="/api/orders",status="201"} 3"#,
        // Paths that clients invent must not become time series of their own.
        r#"orderflow_http_request_seconds_count{method="GET",route="none",status="404"} 2"#,
        r#"orderflow_http_request_seconds_count{method="other",route="/health",status="405"} 2"#,
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_each_dependency() -> Result<()> {
    let stack = Stack::shared().await?;
    let producer = stack.producer().start().await?;
    dependencies_up(&producer, &["kafka", "s3", "shard1", "shard2"]).await?;
    producer.ready(PATIENCE).await?;
    let up = json!({"status": "up"});
    let dependencies = json!({"kafka": up, "s3": up, "shard1": up, "shard2": up});
    let ready = readiness(&producer).await?.json();
    assert_eq!((&ready["ready"], &ready["reasons"], &ready["dependencies"]), (&json!(true), &json!([]), &dependencies));
    let running = json!({"status": "running", "restarts": 0});
    let tasks = ready["tasks"].as_object().context("no tasks")?;
    assert!(tasks.len() == 16 && tasks.values().all(|task| *task == running), "{tasks:?}");
    // Clients of the API must not reach these paths.
    let api = Api::new(&producer)?;
    for path in ["/readyz", "/livez", "/metrics"] {
        api.get(path).await?.expect_problem(404, "not-found")?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_port_serves_the_api_and_the_internal_one_everything() -> Result<()> {
    const INTERNAL: [&str; 8] =
        ["/", "/api/stats", "/api/shards", "/api/config", "/api/feed", "/api/dead-letters", "/dashboard.js", "/trail"];
    let stack = Stack::shared().await?;
    let producer = stack.producer().env("INTERNAL_PORT", "0").start().await?;
    dependencies_up(&producer, &["shard1", "shard2", "kafka", "s3"]).await?;
    let public = Api::new(&producer)?;
    let internal = Api { url: producer.internal_url()?, ..public.clone() };

    let id = public.place("alice", None).await?.acked(0)?.id;
    public.receipt_stored(&id).await?;
    for path in ["/health", "/openapi.json", "/api/orders?user_id=alice", &format!("/api/orders/{id}/receipt")] {
        for api in [&public, &internal] {
            ensure!(api.get(path).await?.status == StatusCode::OK, "{path} of {}", api.url);
        }
    }
    let problem = public.get("/api/orders").await?.expect_problem(400, "invalid-parameter")?;
    ensure!(problem["errors"][0]["field"] == "user_id", "{problem}");
    ensure!(internal.get("/api/orders").await?.status == StatusCode::OK);

    let described = internal.get("/openapi.json").await?.json();
    let paths = described["paths"].as_object().context("no paths")?.keys().cloned();
    let of_clients = public.get("/openapi.json").await?.json();
    let of_clients = of_clients["paths"].as_object().context("no paths")?;
    let hidden = paths.filter(|path| !of_clients.contains_key(path)).map(|path| path.replace("{id}", &id));
    let hidden: Vec<String> = hidden.chain(INTERNAL.map(str::to_owned)).collect();
    ensure!(hidden.len() > INTERNAL.len(), "{hidden:?}");
    for path in hidden {
        public.get(&path).await?.expect_problem(404, "not-found")?;
    }
    ensure!(internal.get("/api/stats").await?.status == StatusCode::OK);
    Ok(())
}
