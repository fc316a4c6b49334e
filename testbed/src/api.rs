//! A client of the producer's HTTP API, as a test uses it: it places orders and reads what was answered.

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use reqwest::{RequestBuilder, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

use crate::{Producer, eventually, http, wait::PATIENCE};

/// A client of one producer.
#[derive(Debug, Clone)]
pub struct Api {
    pub client: reqwest::Client,
    /// The address of the API, without a path.
    pub url: String,
}

/// A response, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

/// An order that was answered 201.
#[derive(Debug, Clone)]
pub struct Acked {
    pub id: String,
    pub user_id: String,
    pub shard: String,
    pub receipt: String,
    /// Position among the orders of its sender: for one user, the order in which they were answered.
    pub sequence: usize,
}

impl Api {
    pub fn new(producer: &Producer) -> Result<Self> {
        Ok(Self::at(producer.url()?))
    }

    /// Returns a client of the API at `url`.
    pub fn at(url: impl Into<String>) -> Self {
        Self { client: http::client(), url: url.into() }
    }

    /// Starts a request that a test completes itself.
    pub fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = method.parse().expect("a method is a word");
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub async fn send(&self, request: RequestBuilder) -> Result<Reply> {
        Reply::read(request.send().await?).await
    }

    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.send(self.request("GET", path)).await
    }

    /// Posts `body` unchanged to `/api/orders`.
    pub async fn post(&self, body: impl Into<String>, key: Option<&str>) -> Result<Reply> {
        let request = self.request("POST", "/api/orders").header("content-type", "application/json").body(body.into());
        let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
        self.send(request).await
    }

    pub async fn place(&self, user: &str, key: Option<&str>) -> Result<Reply> {
        self.post(order_of(user), key).await
    }

    /// Places `count` orders of users on both shards over 16 connections; all must be answered 201.
    pub async fn place_many(&self, count: usize) -> Result<Vec<Acked>> {
        let replies: Vec<Result<Acked>> = stream::iter(0..count)
            .map(async |sequence| {
                let reply = self.place(&user(sequence), None).await?;
                ensure!(reply.status == StatusCode::CREATED, "order {sequence}: {reply:?}");
                reply.acked(sequence)
            })
            .buffer_unordered(16)
            .collect()
            .await;
        replies.into_iter().collect()
    }

    /// Returns what `GET /api/orders/{id}` answers.
    pub async fn order(&self, id: &str) -> Result<Value> {
        self.get(&format!("/api/orders/{id}")).await?.ok()
    }

    pub async fn receipt(&self, id: &str) -> Result<Reply> {
        self.get(&format!("/api/orders/{id}/receipt")).await
    }

    /// Waits until the order's receipt is written.
    pub async fn receipt_stored(&self, id: &str) -> Result<()> {
        eventually(&format!("the receipt of {id}"), PATIENCE, async || {
            let order = self.order(id).await?;
            ensure!(order["receipt_status"] == "stored", "{order}");
            Ok(())
        })
        .await
    }

    /// Lists dead letters; `query` begins with `?` unless it is empty.
    pub async fn dead_letters(&self, query: &str) -> Result<Value> {
        self.get(&format!("/api/dead-letters{query}")).await?.ok()
    }

    pub async fn replay(&self, body: &Value) -> Result<Reply> {
        let request = self.request("POST", "/api/dead-letters/replay").header("content-type", "application/json");
        self.send(request.body(body.to_string())).await
    }

    /// Replays the dead letters up to an offset, and returns how many were replayed.
    pub async fn replayed(&self, through: u64) -> Result<u64> {
        let reply = self.replay(&json!({"through": through})).await?.ok()?;
        reply["replayed"].as_u64().with_context(|| format!("no count of replayed letters: {reply}"))
    }
}

impl Reply {
    pub async fn read(response: reqwest::Response) -> Result<Self> {
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Self { status, headers, text: response.text().await? })
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {:?}", self.text))
    }

    /// Returns the body as JSON, and fails unless the status is 200.
    pub fn ok(&self) -> Result<Value> {
        ensure!(self.status == StatusCode::OK, "{self:?}");
        Ok(self.json())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header is text"))
    }

    pub fn acked(&self, sequence: usize) -> Result<Acked> {
        let json: Value = serde_json::from_str(&self.text)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("no text in {json}"));
        Ok(Acked {
            id: text(&json["order"]["id"])?,
            user_id: text(&json["order"]["user_id"])?,
            shard: text(&json["shard"])?,
            receipt: text(&json["receipt"])?,
            sequence,
        })
    }

    /// Returns the reply's problem, after checking the members that every error of the API must have.
    pub fn problem(&self) -> Result<Value> {
        ensure!(self.header("content-type") == Some("application/problem+json"), "no problem: {self:?}");
        let problem = self.json();
        ensure!(problem["status"] == self.status.as_u16(), "its status differs from the response's: {self:?}");
        for member in ["type", "title", "detail", "error"] {
            ensure!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "it has no {member}: {self:?}");
        }
        ensure!(problem["error"] == problem["detail"], "the demo's error differs from the detail: {self:?}");
        Ok(problem)
    }

    /// Fails unless this is a problem of this status and kind (`not-accepted`).
    pub fn expect_problem(&self, status: u16, kind: &str) -> Result<Value> {
        let problem = self.problem()?;
        let kind = format!("https://orderflow.dev/problems/{kind}");
        ensure!(self.status == status && problem["type"] == kind, "not {status} {kind}: {self:?}");
        Ok(problem)
    }
}

/// Returns a user by number: 40 in all, on both shards.
pub fn user(number: usize) -> String {
    let letters = ["a", "b", "h", "m", "n", "q", "z", "7"];
    format!("{}-user-{}", letters[number % letters.len()], number % 40)
}

/// Returns the JSON of an order.
pub fn order_of(user: &str) -> String {
    format!(r#"{{"user_id":"{user}","product_name":"Keyboard","quantity":2,"price":149.99}}"#)
}
