//! The clients: they place orders at a steady rate throughout a run, and record each request and its outcome.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use fastrand::Rng;
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use tokio::{
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use uuid::Uuid;

use crate::{
    history::{Clock, Outcome, Recorder, Try},
    workload::{Manner, Plan},
};

/// The most orders in flight; beyond it new ones wait. During an outage all of them retry, which must not become a
/// fault of its own: the clients share the machine with the system under test.
const IN_FLIGHT: usize = 256;

/// The longest to wait for a response: longer than any deadline of the API, so that its response is recorded.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The most times an order is sent, and the pauses between in milliseconds: together longer than any fault.
const MOST_TRIES: usize = 100;
const FIRST_PAUSE: u64 = 100;
const LONGEST_PAUSE: u64 = 3000;

/// An API that orders can be sent to.
#[derive(Debug, Clone)]
pub struct Producer {
    pub name: String,
    pub url: String,
}

#[derive(Debug)]
pub struct Clients {
    pub seed: u64,
    pub producers: Vec<Producer>,
    pub recorder: Arc<Recorder>,
    pub clock: Clock,
}

impl Clients {
    /// Places `most` orders from number `first` on, at `rate` per second, or fewer if the other end of `stopped` is
    /// dropped before. Orders in flight at that time are completed.
    pub async fn run(
        self: Arc<Self>,
        first: u64,
        most: u64,
        rate: u32,
        mut stopped: oneshot::Receiver<()>,
    ) -> Result<()> {
        let client = client()?;
        let room = Arc::new(Semaphore::new(IN_FLIGHT));
        let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut orders = JoinSet::new();
        let mut begun = 0;
        while begun < most && matches!(stopped.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            ticks.tick().await;
            let room = room.clone().acquire_owned().await.context("wait for room")?;
            let (clients, client, number) = (self.clone(), client.clone(), first + begun);
            begun += 1;
            orders.spawn(async move {
                let placed = clients.place(&client, Plan::new(clients.seed, number)).await;
                drop(room);
                placed
            });
            while let Some(ended) = orders.try_join_next() {
                ended.context("place an order")??;
            }
        }
        while let Some(ended) = orders.join_next().await {
            ended.context("place an order")??;
        }
        Ok(())
    }

    /// Places one order in its manner.
    pub async fn place(&self, client: &Client, plan: Plan) -> Result<()> {
        let mut rng = Rng::with_seed(self.seed ^ plan.number.rotate_left(32));
        self.recorder.plan(plan.clone())?;
        if plan.manner == Manner::Together {
            let mut chosen = || rng.usize(..self.producers.len());
            let (one, two, three) = (chosen(), chosen(), chosen());
            tokio::try_join!(
                self.send(client, &plan, one, false),
                self.send(client, &plan, two, false),
                self.send(client, &plan, three, false)
            )?;
        }
        let mut acked = false;
        let mut pause = FIRST_PAUSE;
        for _ in 0..MOST_TRIES {
            let chosen = rng.usize(..self.producers.len());
            match self.send(client, &plan, chosen, false).await? {
                Outcome::Acked { .. } => {
                    acked = true;
                    break;
                }
                Outcome::Refused { .. } => break,
                Outcome::Unknown { .. } if plan.manner == Manner::Once => return Ok(()),
                Outcome::Unknown { .. } | Outcome::NotAccepted => {
                    // Wait for the end of the fault, as a person would.
                    sleep(Duration::from_millis(rng.u64(pause / 2..=pause))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        let chosen = rng.usize(..self.producers.len());
        match plan.manner {
            // Without a first success this would be another first try.
            Manner::Again | Manner::Conflicting if !acked => Ok(()),
            Manner::Again => self.send(client, &plan, chosen, false).await.map(drop),
            Manner::Conflicting => self.send(client, &plan, chosen, true).await.map(drop),
            _ => Ok(()),
        }
    }

    async fn send(&self, client: &Client, plan: &Plan, producer: usize, conflicting: bool) -> Result<Outcome> {
        let producer = &self.producers[producer];
        let mut request = client
            .post(format!("{}/api/orders", producer.url))
            .header("content-type", "application/json")
            .body(plan.body(conflicting));
        if let Some(key) = &plan.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let sent = self.clock.now();
        let outcome = match request.send().await {
            Ok(response) => read(response).await,
            Err(error) if error.is_connect() => Outcome::NotAccepted,
            Err(error) => lost(&error),
        };
        let answered = self.clock.now();
        self.recorder.tried(Try {
            attempt: plan.number,
            conflicting,
            producer: producer.name.clone(),
            sent,
            answered,
            outcome: outcome.clone(),
        })?;
        Ok(outcome)
    }
}

/// Returns a client that keeps no idle connections: one that a killed producer left would look like one that it broke.
pub fn client() -> Result<Client> {
    let client = Client::builder().timeout(ANSWER_TIMEOUT).connect_timeout(Duration::from_secs(2));
    client.pool_max_idle_per_host(0).no_proxy().build().context("create a client")
}

async fn read(response: Response) -> Outcome {
    let (status, replayed) = (response.status(), response.headers().contains_key("idempotency-replayed"));
    let answer: Value = match response.json().await {
        Ok(answer) => answer,
        Err(error) => return lost(&error),
    };
    let id = |value: &Value| value.as_str().and_then(|id| Uuid::parse_str(id).ok());
    let problem = answer["type"].as_str().unwrap_or_default();
    match status {
        StatusCode::CREATED => match id(&answer["order"]["id"]) {
            Some(id) => Outcome::Acked { id, replayed },
            None => Outcome::Refused { status: 201, problem: format!("a 201 without an order: {answer}") },
        },
        StatusCode::SERVICE_UNAVAILABLE if problem.ends_with("/not-accepted") => Outcome::NotAccepted,
        StatusCode::SERVICE_UNAVAILABLE if problem.ends_with("/outcome-unknown") => {
            Outcome::Unknown { id: id(&answer["order_id"]), why: "outcome-unknown".to_owned() }
        }
        status => Outcome::Refused { status: status.as_u16(), problem: answer.to_string() },
    }
}

fn lost(error: &reqwest::Error) -> Outcome {
    let why = if error.is_timeout() { "no answer in time" } else { "connection lost" };
    Outcome::Unknown { id: None, why: why.to_owned() }
}
