//! A later shard map does not change the receipts and events of orders that were placed under an earlier one.

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{
    Isolation, Stack,
    api::{Acked, Api},
    eventually,
    wait::PATIENCE,
};
use serde_json::Value;

use crate::support::serving;

/// Keeps the events of new orders out of the outbox.
const FORGET: &str = "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
                      CREATE TRIGGER forget BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION forget()";

#[tokio::test(flavor = "multi_thread")]
async fn a_repaired_receipt_and_event_name_the_map_under_which_the_order_was_placed() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let mut shard = stack.shard(1).await?;
    sqlx::raw_sql(FORGET).execute(&mut shard).await?;
    let (earlier, later) = (api.place("alice", None).await?.acked(0)?, api.place("anna", None).await?.acked(0)?);
    sqlx::raw_sql("DROP TRIGGER forget ON outbox").execute(&mut shard).await?;
    for order in [&earlier, &later] {
        api.receipt_stored(&order.id).await?;
        stack.s3().delete_object().bucket(stack.bucket()).key(&order.receipt).send().await?;
    }
    for number in [1, 2] {
        const MAP: &str = "INSERT INTO orderflow_map (epoch, shards) VALUES (2, 'shard1:2=A-F,shard2:1=G-Z')";
        sqlx::query(MAP).execute(&mut stack.shard(number).await?).await?;
    }
    sqlx::query("UPDATE orders SET map_epoch = 2 WHERE id::text = $1").bind(&later.id).execute(&mut shard).await?;

    let verified = stack.verify(&["--repair", "--renotify", "--since", "1h"]).await?;
    ensure!(verified.output.contains("queued again: 2 receipts, 2 events"), "{}", verified.output);
    made_again(&stack, &api, &earlier, "shard1 (A-M)", 1).await?;
    made_again(&stack, &api, &later, "shard1 (A-F)", 2).await
}

async fn made_again(stack: &Stack, api: &Api, order: &Acked, shard: &str, number: u64) -> Result<()> {
    eventually(&format!("the receipt and the event of {}", order.id), PATIENCE, async || {
        let receipt = api.receipt(&order.id).await?.text;
        let line = format!("Shard:      {shard}\n");
        ensure!(receipt.contains(&line), "no {line:?} in {receipt}");
        let events = stack.read_topic(&stack.topic(), Isolation::ReadCommitted).await?;
        let events: Vec<Value> = events.iter().map(orderflow_testbed::Record::json).collect::<Result<_>>()?;
        let event = events.iter().find(|event| event["order_id"] == order.id.as_str()).context("no event")?;
        ensure!(event["shard"] == number, "{event}");
        Ok(())
    })
    .await
}
