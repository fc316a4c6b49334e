//! Invalid requests are refused with the broken rule and its field, and nothing of them is stored. Unusual but valid
//! requests are accepted, and their orders found again.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Stack,
    api::{Acked, Api, order_of},
};
use reqwest::{RequestBuilder, StatusCode, Url};
use serde_json::Value;

use crate::support::{receipts, serving};

/// An invalid request and its expected refusal.
struct Wrong {
    what: String,
    request: RequestBuilder,
    status: u16,
    kind: &'static str,
    /// The field, header or parameter that is named first; empty if none can be.
    field: &'static str,
}

/// Sends all requests. Fails if any is not refused as expected, or if an order was stored.
async fn all_are_refused(stack: &Stack, api: &Api, requests: Vec<Wrong>) -> Result<()> {
    let mut failures = Vec::new();
    for Wrong { what, request, status, kind, field } in requests {
        let reply = api.send(request).await.with_context(|| format!("{what}: no response"))?;
        let refused = reply.expect_problem(status, kind).and_then(|problem| {
            let named = problem["errors"][0]["field"].as_str().unwrap_or_default();
            ensure!(named == field, "names {named:?}, not {field:?}: {problem}");
            let allowed = reply.header("allow").is_some_and(|methods| !methods.is_empty());
            ensure!(allowed == (status == 405), "does not name the allowed methods: {reply:?}");
            Ok(())
        });
        if let Err(error) = refused {
            failures.push(format!("{what}: {error:#}"));
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));

    const ROWS: &str = "SELECT (SELECT count(*) FROM orders) + (SELECT count(*) FROM idempotency_keys) \
                        + (SELECT count(*) FROM outbox) + (SELECT count(*) FROM receipt_jobs)";
    for shard in [1, 2] {
        let rows: i64 = sqlx::query_scalar(ROWS).fetch_one(&mut stack.shard(shard).await?).await?;
        assert_eq!(rows, 0, "rows on shard {shard}");
    }
    Ok(())
}

/// Returns a valid order with one field replaced by a value given as JSON.
fn with(field: &str, value: &str) -> String {
    let fields = [("user_id", r#""alice""#), ("product_name", r#""Keyboard""#), ("quantity", "2"), ("price", "149.99")];
    let members = fields.map(|(name, usual)| format!(r#""{name}":{}"#, if name == field { value } else { usual }));
    format!("{{{}}}", members.join(","))
}

fn post(api: &Api, body: impl Into<Vec<u8>>) -> RequestBuilder {
    api.request("POST", "/api/orders").header("content-type", "application/json").body(body.into())
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_body_is_refused_with_its_first_broken_rule() -> Result<()> {
    const RULE: &str = "invalid-order";
    const FORM: &str = "malformed";
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;

    let long_user = quoted(&"é".repeat(101));
    let long_product = quoted(&"é".repeat(256));
    let long_price = format!("149.99{}1", "0".repeat(30));
    let digits = "9".repeat(10_000);
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let values = [
        ("user_id", r#""""#, RULE),
        ("user_id", "null", RULE),
        ("user_id", "5", RULE),
        ("user_id", r#"["alice"]"#, RULE),
        ("user_id", &long_user, RULE),
        ("user_id", r#""al\u0000ice""#, RULE),
        ("user_id", r#""al\nice""#, RULE),
        ("user_id", r#""al\u0085ice""#, RULE),
        ("user_id", r#""\ud800""#, RULE),
        ("user_id", r#""\udc00\ud800""#, RULE),
        ("user_id", "\"al\nice\"", FORM),
        ("user_id", r#""\x""#, FORM),
        ("product_name", r#""""#, RULE),
        ("product_name", "{}", RULE),
        ("product_name", &long_product, RULE),
        ("product_name", r#""\u001b[31m""#, RULE),
        ("quantity", "0", RULE),
        ("quantity", "-1", RULE),
        ("quantity", "-0", RULE),
        ("quantity", "1.5", RULE),
        ("quantity", "1e-2", RULE),
        ("quantity", "2.00001", RULE),
        ("quantity", r#""2""#, RULE),
        ("quantity", "true", RULE),
        ("quantity", "2147483648", RULE),
        ("quantity", "9223372036854775808", RULE),
        ("quantity", &digits, RULE),
        ("quantity", "+1", FORM),
        ("price", r#""149.99""#, RULE),
        ("price", "null", RULE),
        ("price", "0", RULE),
        ("price", "0.00", RULE),
        ("price", "-0.01", RULE),
        ("price", "-149.99", RULE),
        ("price", "149.999", RULE),
        ("price", &long_price, RULE),
        ("price", "100000000", RULE),
        ("price", &digits, RULE),
        ("price", "1E400", RULE),
        ("price", "1e-3", RULE),
        ("price", &deep, RULE),
        ("price", "NaN", FORM),
        ("price", "Infinity", FORM),
        ("price", "01", FORM),
        ("price", ".5", FORM),
        ("price", "1.", FORM),
    ];
    let mut requests: Vec<Wrong> = values
        .map(|(field, value, kind)| Wrong {
            what: format!("{field} {}", value.chars().take(40).collect::<String>()),
            request: post(&api, with(field, value)),
            status: 400,
            kind,
            field,
        })
        .into();

    let order = with("", "");
    let twice = |member: &str| order.replace('}', &format!(",{member}}}"));
    let bodies: [(&str, Vec<u8>, &str, &str); 21] = [
        ("too much money", with("price", "99999999.99").replace(":2,", ":2147483647,").into(), RULE, "quantity"),
        ("no field at all", "{}".into(), RULE, "user_id"),
        ("fields of another case", order.replace("price", "Price").into(), RULE, "price"),
        ("nothing", "".into(), FORM, ""),
        ("spaces", "  \n".into(), FORM, ""),
        ("an array", format!("[{order}]").into(), FORM, ""),
        ("a string", quoted(&order).into(), FORM, ""),
        ("null", "null".into(), FORM, ""),
        ("a form", "user_id=alice&product_name=Keyboard&quantity=2&price=149.99".into(), FORM, ""),
        ("a broken off object", order[..order.len() - 1].into(), FORM, ""),
        ("a broken off text", r#"{"user_id":"ali"#.into(), FORM, "user_id"),
        ("two objects", format!("{order}{order}").into(), FORM, ""),
        ("an object and a comma", format!("{order},").into(), FORM, ""),
        ("two equal prices", twice(r#""price":149.99"#).into(), FORM, "price"),
        ("two users", twice(r#""user\u005fid":"zara""#).into(), FORM, "user_id"),
        ("a bare control character", order.replace("alice", "al\u{1}ce").into(), FORM, "user_id"),
        ("a byte that no UTF-8 has", not_utf8(&order), FORM, "user_id"),
        ("a byte order mark", format!("\u{feff}{order}").into(), FORM, ""),
        ("UTF-16", order.encode_utf16().flat_map(u16::to_be_bytes).collect(), FORM, ""),
        // The number ended before its invalid part, which belongs to no field.
        ("a hexadecimal quantity", with("quantity", "0x10").into(), FORM, ""),
        ("a price with a comma", with("price", "1,5").into(), FORM, ""),
    ];
    for (what, body, kind, field) in bodies {
        requests.push(Wrong { what: what.to_owned(), request: post(&api, body), status: 400, kind, field });
    }
    for (what, bytes) in [("64 KiB and a byte", 64 * 1024 + 1), ("10 MB", 10_000_000)] {
        let body = format!("{order}{}", " ".repeat(bytes - order.len()));
        let request = post(&api, body);
        requests.push(Wrong { what: what.to_owned(), request, status: 413, kind: "body-too-large", field: "" });
    }
    for content_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("application/jsonp")]
    {
        let mut request = api.request("POST", "/api/orders").body(order.clone());
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let what = format!("the content type {content_type:?}");
        requests.push(Wrong { what, request, status: 415, kind: "unsupported-media-type", field: "" });
    }
    for encoding in ["gzip", "br", "deflate, gzip"] {
        let request = post(&api, [0x1f, 0x8b, 0x08]).header("content-encoding", encoding);
        let what = format!("the content encoding {encoding}");
        requests.push(Wrong { what, request, status: 415, kind: "unsupported-media-type", field: "" });
    }
    all_are_refused(&stack, &api, requests).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_body_and_a_byte_order_mark_are_named() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let gzip = api.send(post(&api, [0x1f, 0x8b]).header("content-encoding", "gzip")).await?;
    let detail = gzip.expect_problem(415, "unsupported-media-type")?["detail"].to_string();
    assert!(detail.contains("Content-Encoding gzip"), "{detail}");
    let marked = api.post(format!("\u{feff}{}", order_of("alice")), None).await?;
    let detail = marked.expect_problem(400, "malformed")?["detail"].to_string();
    assert!(detail.contains("byte order mark (U+FEFF)"), "{detail}");
    let plain = api.send(post(&api, order_of("alice")).header("content-encoding", "identity")).await?;
    assert_eq!(plain.status, StatusCode::CREATED, "{plain:?}");
    Ok(())
}

fn not_utf8(order: &str) -> Vec<u8> {
    let mut bytes = order.as_bytes().to_vec();
    let at = order.find("alice").expect("find the user");
    bytes[at] = 0xff;
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broken_rule_of_a_body_is_named() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let reply = api.post(r#"{"user_id":"","quantity":0,"price":0.001}"#, None).await?;
    let problem = reply.expect_problem(400, "invalid-order")?;
    let errors: Vec<(&str, &str)> = problem["errors"]
        .as_array()
        .context("errors")?
        .iter()
        .map(|error| (error["field"].as_str().unwrap_or_default(), error["detail"].as_str().unwrap_or_default()))
        .collect();
    let expected = [
        ("user_id", "must not be empty"),
        ("product_name", "is required"),
        ("quantity", "must be a whole number from 1 to 2147483647"),
        ("price", "must have at most two decimals"),
    ];
    assert_eq!(errors, expected);
    for (field, rule) in expected {
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains(&format!("{field} {rule}"))), "{problem}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_that_breaks_a_rule_is_refused() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let long = "k".repeat(300);
    let keys: [(&str, Vec<&[u8]>); 9] = [
        ("300 characters", vec![long.as_bytes()]),
        ("256 characters", vec![&long.as_bytes()[..256]]),
        ("nothing", vec![b""]),
        ("nothing in quotes", vec![b"\"\""]),
        ("a quote that is not closed", vec![b"\"key"]),
        ("a quote inside the quotes", vec![b"\"k\"ey\""]),
        ("other letters than ASCII", vec!["ключ".as_bytes()]),
        ("a tab inside", vec![b"k\tey"]),
        ("two headers", vec![b"key", b"key"]),
    ];
    let requests = keys.map(|(what, values)| {
        let request = post(&api, order_of("alice"));
        let request = values.into_iter().fold(request, |request, value| request.header("idempotency-key", value));
        Wrong { what: what.to_owned(), request, status: 400, kind: "invalid-parameter", field: "Idempotency-Key" }
    });
    all_are_refused(&stack, &api, requests.into()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_path_method_or_parameter_is_refused() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let long_user = format!("user_id={}", "a".repeat(101));
    let stale = format!("cursor={}", "A".repeat(39));
    let mut requests = Vec::new();
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("limit=x", "limit"),
        ("limit=", "limit"),
        ("limit=1.5", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=", "cursor"),
        ("cursor=%FF", "cursor"),
        (stale.as_str(), "cursor"),
        ("user_id=", "user_id"),
        ("user_id=%00", "user_id"),
        (long_user.as_str(), "user_id"),
        ("limit=1&limit=2", "limit"),
        ("user_id=alice&user_id=zara", "user_id"),
        ("user_id=alice&limit=1&user%5Fid=alice", "user_id"),
        ("cursor=x&cursor=x", "cursor"),
        ("user_id=%ff", "user_id"),
        ("user_id=al%c3", "user_id"),
        ("user_id=100%", "user_id"),
        ("user_id=%zz", "user_id"),
        ("limit=%2B5", "limit"),
        ("progress=yes", "progress"),
        ("%ff=alice", "query"),
        ("userId=alice", "userId"),
        ("user_id=alice&page=2", "page"),
        ("User_id=alice", "User_id"),
    ] {
        let request = api.request("GET", &format!("/api/orders?{query}"));
        requests.push(Wrong { what: query.to_owned(), request, status: 400, kind: "invalid-parameter", field });
    }
    for (path, field) in [
        ("/health?verbose=1", "verbose"),
        ("/api/stats?x", "x"),
        ("/api/dead-letters?limit=5&offset=3", "offset"),
        ("/api/orders/00000000-0000-0000-0000-000000000000?user_id=alice", "user_id"),
    ] {
        let request = api.request("GET", path);
        requests.push(Wrong { what: path.to_owned(), request, status: 400, kind: "invalid-parameter", field });
    }
    let zero = "00000000-0000-0000-0000-000000000000";
    for id in ["x", "1", &zero[1..], &format!("{zero}0"), "%FF", "%00", "..%2f..", "alice"] {
        for path in [format!("/api/orders/{id}"), format!("/api/orders/{id}/receipt")] {
            let request = api.request("GET", &path);
            requests.push(Wrong { what: path, request, status: 400, kind: "invalid-parameter", field: "id" });
        }
    }
    for path in [
        "/api",
        "/api/orders/",
        "/api/order",
        "/API/orders",
        "/nothing",
        "//",
        "/health/",
        "/dashboard/",
        "/dashboard/nothing.js",
        "/dashboard/..%2fsrc%2flib.rs",
        "/dashboard/%FF",
        "/index.html",
    ] {
        let request = api.request("GET", path);
        requests.push(Wrong { what: path.to_owned(), request, status: 404, kind: "not-found", field: "" });
    }
    for (method, path) in [
        ("PUT", "/api/orders"),
        ("DELETE", "/api/orders"),
        ("OPTIONS", "/api/orders"),
        ("BREW", "/api/orders"),
        ("POST", "/api/orders/x"),
        ("DELETE", "/api/orders/x"),
        ("POST", "/health"),
        ("POST", "/openapi.json"),
        ("POST", "/"),
        ("POST", "/dashboard/main.js"),
    ] {
        let what = format!("{method} {path}");
        let request = api.request(method, path);
        requests.push(Wrong { what, request, status: 405, kind: "method-not-allowed", field: "" });
    }
    all_are_refused(&stack, &api, requests).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_parameter_is_answered_with_the_known_ones() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let problem = api.get("/api/orders?userId=alice").await?.expect_problem(400, "invalid-parameter")?;
    let expected = "userId is not a parameter of this operation, which takes user_id, limit, cursor, progress";
    assert_eq!(problem["detail"], expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_numbers_are_one_order_however_they_are_written() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let key = Some("one order");
    let first = api.post(with("", ""), key).await?.acked(0)?;
    for (field, value) in [("quantity", "2.0"), ("quantity", "0.2e1"), ("price", "149.9900"), ("price", "1.4999E2")] {
        let reply = api.post(with(field, value), key).await?;
        assert_eq!(reply.header("idempotency-replayed"), Some("true"), "{field} {value}: {reply:?}");
        assert_eq!(reply.acked(0)?.id, first.id, "{field} {value}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_users_are_served_like_others() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let (longest, widest) = ("a".repeat(100), "😀".repeat(100));
    let users = [
        ("shard1", longest.as_str()),
        ("shard2", widest.as_str()),
        ("shard2", "../../etc/passwd"),
        ("shard2", ".."),
        ("shard2", "/"),
        ("shard2", "50%"),
        ("shard2", "%2e%2e%2f"),
        ("shard1", "a/b"),
        ("shard2", r#"""#),
        ("shard1", r#"a"b'c\d"#),
        ("shard2", " "),
        ("shard2", "é"),
        ("shard1", "e\u{301}"),
        ("shard1", "a+b&c=d#e?f"),
        ("shard2", "<b>bold</b>"),
        ("shard2", "'; DROP TABLE orders; --"),
        ("shard2", "\u{202e}evil"),
    ];
    let mut acked: Vec<Acked> = Vec::new();
    for (shard, user) in users {
        let reply = api.send(post(&api, with("user_id", &quoted(user)))).await?;
        ensure!(reply.status == StatusCode::CREATED, "{user:?}: {reply:?}");
        let order = reply.acked(0)?;
        assert_eq!((order.user_id.as_str(), order.shard.as_str()), (user, shard));
        let segments: Vec<&str> = order.receipt.split('/').collect();
        assert!(segments.len() == 3 && segments[0] == "receipts", "{user:?}: {}", order.receipt);
        assert!(!segments[1].is_empty() && !segments[1].starts_with('.'), "{user:?}: {}", order.receipt);
        acked.push(order);
    }
    for order in &acked {
        api.receipt_stored(&order.id).await?;
        let receipt = api.receipt(&order.id).await?;
        ensure!(receipt.status == StatusCode::OK, "{:?}: {receipt:?}", order.user_id);
        assert!(receipt.text.contains(&format!("\nUser:       {}\n", order.user_id)), "{receipt:?}");

        let url = Url::parse_with_params(&format!("{}/api/orders", api.url), [("user_id", &order.user_id)])?;
        let list = api.send(api.client.get(url)).await?.json();
        assert_eq!((&list["count"], &list["orders"][0]["id"]), (&Value::from(1), &Value::from(order.id.as_str())));
    }
    let mut objects = receipts(&stack).await?;
    let mut answered: Vec<String> = acked.into_iter().map(|order| order.receipt).collect();
    objects.sort_unstable();
    answered.sort_unstable();
    assert_eq!(objects, answered);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_but_valid_orders_are_accepted() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let order = order_of("alice");
    let unknown = |member: &str| order.replace('{', &format!("{{{member},"));
    let deep = format!(r#""deep":{}{}"#, "[".repeat(20_000), "]".repeat(20_000));
    for (what, body) in [
        ("unknown fields", unknown(r#""id":"mine","status":"paid","total":1e999"#)),
        ("a deep unknown field", unknown(&deep)),
        ("an unknown field twice", unknown(r#""x":1,"x":2"#)),
        ("a name with escapes", order.replace("user_id", r"user\u005fid")),
        ("the longest product", with("product_name", &quoted(&"😀".repeat(255)))),
        ("the largest quantity", with("quantity", "2147483647").replace("149.99", "0.01")),
        ("the most money", with("quantity", "1000000").replace("149.99", "10000000")),
        ("a quantity with decimals", with("quantity", "2.0")),
        ("a quantity with an exponent", with("quantity", "2e2")),
        ("a price with more zeros", with("price", "149.9900")),
        ("a price with an exponent", with("price", "1.0E7")),
        ("exactly 64 KiB", format!("{order}{}", " ".repeat(64 * 1024 - order.len()))),
    ] {
        let reply = api.post(body, None).await?;
        ensure!(reply.status == StatusCode::CREATED, "{what}: {reply:?}");
        assert_eq!(reply.json()["order"]["status"], "created", "{what}");
    }
    for content_type in ["application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"] {
        let request = api.request("POST", "/api/orders").header("content-type", content_type).body(order.clone());
        let reply = api.send(request).await?;
        ensure!(reply.status == StatusCode::CREATED, "{content_type}: {reply:?}");
    }
    Ok(())
}
