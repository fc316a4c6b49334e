//! Users who order, and send again with the same key when they get no 201.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use orderflow_testbed::{eventually, wait::accepted};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{ROLLOUT, cluster::Cluster, ledger::Ledger};

/// The number of concurrent users.
const PEOPLE: usize = 4;

/// The pause between two orders of one user.
const PAUSE: Duration = Duration::from_millis(100);

/// A stream of orders until it is stopped.
pub struct Traffic {
    people: JoinSet<Result<Vec<String>>>,
    stop: Arc<AtomicBool>,
    taken: Arc<AtomicUsize>,
}

/// The results of the orders.
pub struct Tally {
    pub taken: usize,
    /// The errors of all requests that were not answered 201.
    pub failed: Vec<String>,
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} orders taken, {} requests failed", self.taken, self.failed.len())?;
        self.failed.first().map_or(Ok(()), |first| write!(out, " (as in: {first:.100})"))
    }
}

impl Traffic {
    pub fn start(url: &str, ledger: &Ledger) -> Result<Self> {
        let (stop, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = client()?;
        let mut people = JoinSet::new();
        for person in 0..PEOPLE {
            let (client, url, ledger) = (client.clone(), url.to_owned(), ledger.clone());
            let (stop, taken) = (stop.clone(), taken.clone());
            people.spawn(async move {
                let mut failed = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let answer = place(&client, &url, &order(person + number), &mut failed).await?;
                    ledger.note(&answer)?;
                    taken.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(failed)
            });
        }
        Ok(Self { people, stop, taken })
    }

    /// Waits until this many more orders are accepted.
    pub async fn takes(&self, more: usize) -> Result<()> {
        let before = self.taken.load(Ordering::Relaxed);
        let enough = || async { accepted(self.taken.load(Ordering::Relaxed), |taken| *taken >= before + more) };
        eventually(&format!("{more} more orders to be taken"), ROLLOUT, enough).await.map(drop)
    }

    /// Waits until every user has finished.
    pub async fn stop(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        while let Some(person) = self.people.join_next().await {
            failed.extend(person.context("order")??);
        }
        let taken = self.taken.load(Ordering::Relaxed);
        Ok(Tally { taken, failed })
    }
}

/// Places `count` orders through `kubectl port-forward`, all of which must be accepted at once.
pub async fn through_a_port_forward(cluster: &Cluster, ledger: &Ledger, count: usize) -> Result<()> {
    let (_forward, url) = cluster.kubectl.port_forward("service/orderflow-producer", 8080).await?;
    let client = orderflow_testbed::http::client();
    stream::iter(0..count)
        .map(async |number| {
            let mut failed = Vec::new();
            let answer = place(&client, &url, &order(number), &mut failed).await?;
            ensure!(failed.is_empty(), "order {number}: {failed:?}");
            ledger.note(&answer)
        })
        .buffer_unordered(8)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}

/// Sends an order until it is accepted; earlier errors are added to `failed`.
async fn place(client: &Client, url: &str, order: &Value, failed: &mut Vec<String>) -> Result<Value> {
    let (key, began) = (Uuid::now_v7().to_string(), Instant::now());
    loop {
        let request = client.post(format!("{url}/api/orders")).header("idempotency-key", &key).json(order);
        let problem = match request.send().await {
            Ok(answer) if answer.status() == StatusCode::CREATED => match answer.json().await {
                Ok(order) => return Ok(order),
                Err(error) => format!("{:#}", anyhow::Error::from(error)),
            },
            Ok(answer) => format!("{}: {}", answer.status(), answer.text().await.unwrap_or_default()),
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
        };
        failed.push(problem);
        if began.elapsed() > ROLLOUT {
            bail!("not taken within {ROLLOUT:?}: {:?}", failed.last());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns an order; the users are on both shards.
fn order(number: usize) -> Value {
    let letter = ["a", "m", "n", "z", "7", "g"][number % 6];
    json!({ "user_id": format!("{letter}-user-{}", number % 40), "product_name": "Keyboard", "quantity": 2, "price": 149.99 })
}

/// Returns a client with a connection for each request, so that each goes to any pod that the Service selects at that
/// time.
fn client() -> Result<Client> {
    let client = Client::builder().pool_max_idle_per_host(0).no_proxy().timeout(Duration::from_secs(10));
    client.build().context("create a client")
}
