//! Records the orders that were answered 201, and checks that each place has exactly these, once each.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use orderflow_testbed::{eventually, http};
use serde_json::Value;

use crate::{ROLLOUT, cluster::Cluster};

/// The shard that the response named, by order id.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<String, String>>>);

impl Ledger {
    /// Records a 201.
    pub fn note(&self, answer: &Value) -> Result<()> {
        let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("no text in {answer}"));
        let (id, shard) = (text(&answer["order"]["id"])?, text(&answer["shard"])?);
        self.orders(|orders| orders.insert(id, shard));
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.orders(|orders| orders.len())
    }

    /// Waits until all effects of the orders have happened, then checks that each happened once. Orders without a
    /// response were sent again with their key until they had one, so no other orders may exist either.
    pub async fn settle(&self, cluster: &Cluster) -> Result<()> {
        let expected = self.orders(|orders| orders.clone());
        let of_shard = |shard: &str| -> Vec<String> {
            expected.iter().filter(|(_, of)| *of == shard).map(|(id, _)| id.clone()).collect()
        };
        for shard in ["shard1", "shard2"] {
            let query = "SELECT id FROM orders ORDER BY id::text COLLATE \"C\"";
            let found = in_shard(cluster, shard, query).await?;
            let (missing, unexpected) = differences(&of_shard(shard), &found);
            ensure!(missing.is_empty(), "{shard} lost {missing:?}");
            ensure!(unexpected.is_empty(), "{shard} has orders that were never answered 201: {unexpected:?}");
        }

        let notified = eventually("a notification of each order", ROLLOUT, || async {
            let notified = notifications(cluster).await?;
            let missing: Vec<_> = expected.keys().filter(|id| !notified.contains_key(*id)).collect();
            ensure!(missing.is_empty(), "{} orders have none, such as {:?}", missing.len(), missing.first());
            anyhow::Ok(notified)
        })
        .await?;
        let repeated: Vec<_> = notified.iter().filter(|(_, count)| **count != 1).collect();
        ensure!(repeated.is_empty(), "notified more than once: {repeated:?}");
        ensure!(notified.len() == expected.len(), "{} orders, {} notifications", expected.len(), notified.len());

        eventually("no receipt and no event to be left to do", ROLLOUT, || async {
            for shard in ["shard1", "shard2"] {
                for table in ["receipt_jobs", "outbox", "outbox_dead"] {
                    let left = in_shard(cluster, shard, &format!("SELECT * FROM {table}")).await?;
                    ensure!(left.is_empty(), "{} rows in {table} of {shard}", left.len());
                }
            }
            anyhow::Ok(())
        })
        .await?;
        let (_forward, url) = cluster.kubectl.port_forward("service/orderflow-producer", 8080).await?;
        let client = http::client();
        stream::iter(expected.keys())
            .map(async |id| {
                // S3 may be slow, which the API reports.
                let what = format!("the receipt of {id}");
                let text = eventually(&what, ROLLOUT, || async {
                    let answer = client.get(format!("{url}/api/orders/{id}/receipt")).send().await?;
                    let (status, text) = (answer.status(), answer.text().await?);
                    ensure!(status.is_success(), "{status}: {text}");
                    anyhow::Ok(text)
                });
                let text = text.await?;
                ensure!(text.contains(id.as_str()), "the receipt of {id} belongs to another order: {text}");
                anyhow::Ok(())
            })
            .buffer_unordered(8)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    fn orders<T>(&self, access: impl FnOnce(&mut BTreeMap<String, String>) -> T) -> T {
        access(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Deletes an order, so that the check has something to find.
pub async fn lose_one(cluster: &Cluster) -> Result<String> {
    let query = "DELETE FROM orders WHERE id = (SELECT id FROM orders ORDER BY created_at LIMIT 1) RETURNING id";
    in_shard(cluster, "shard1", query).await?.into_iter().next().context("no order is stored")
}

/// Returns what only the first has, and what only the second has.
fn differences(expected: &[String], found: &[String]) -> (Vec<String>, Vec<String>) {
    let without = |these: &[String], those: &[String]| {
        let those: std::collections::BTreeSet<_> = those.iter().collect();
        these.iter().filter(|id| !those.contains(id)).cloned().collect()
    };
    (without(expected, found), without(found, expected))
}

/// Returns the rows of a query, as text.
async fn in_shard(cluster: &Cluster, shard: &str, query: &str) -> Result<Vec<String>> {
    let pod = format!("postgres-{shard}-0");
    let database = format!("orders_{shard}");
    let psql = ["psql", "-U", "orderuser", "-d", &database, "-v", "ON_ERROR_STOP=1", "-XAtc", query];
    let printed = cluster.kubectl.run(&[&["exec", &pod, "--"], &psql[..]].concat()).await?;
    Ok(printed.lines().map(str::to_owned).collect())
}

/// Returns how often each order was notified, by Kafka's own reader.
async fn notifications(cluster: &Cluster) -> Result<BTreeMap<String, usize>> {
    let reader = if cluster.is_kind() {
        "for pod in $HOSTNAME; do exec bin/kafka-console-consumer.sh \"$@\"; done"
    } else {
        "exec java -XX:TieredStopAtLevel=1 -cp '/opt/kafka/libs/*' org.apache.kafka.tools.consumer.ConsoleConsumer \"$@\""
    };
    let pod = if cluster.is_kind() { kafka_pod(cluster).await? } else { "kafka-0".to_owned() };
    let arguments = [
        "--bootstrap-server=localhost:9092",
        "--topic=orders.notifications",
        "--from-beginning",
        "--isolation-level=read_committed",
        // It ends when nothing arrives for this long, so it prints all records.
        "--timeout-ms=8000",
    ];
    let shell = ["exec", &pod, "--", "bash", "-c", reader, "reader"];
    let printed = cluster.kubectl.run(&[&shell[..], &arguments[..]].concat()).await?;
    let mut counts = BTreeMap::new();
    for line in printed.lines().filter(|line| line.starts_with('{')) {
        let notification: Value = serde_json::from_str(line).with_context(|| format!("read {line}"))?;
        let id = notification["order_id"].as_str().with_context(|| format!("no order in {line}"))?;
        *counts.entry(id.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

async fn kafka_pod(cluster: &Cluster) -> Result<String> {
    let pods = cluster.kubectl.get(&["pods", "-l", "strimzi.io/cluster=orderflow,strimzi.io/broker-role=true"]).await?;
    pods["items"][0]["metadata"]["name"].as_str().map(str::to_owned).context("no broker's pod")
}
