//! A receipt as clients see it: written, pending, deleted, unreachable.

use anyhow::{Result, ensure};
use orderflow_testbed::{
    Stack,
    api::{Acked, Api},
    eventually, port,
    wait::PATIENCE,
};
use reqwest::StatusCode;

use crate::support::{dependencies_up, readiness, serving};

async fn stored_order(api: &Api) -> Result<Acked> {
    let body = r#"{"user_id":"alice","product_name":"Mechanical Keyboard","quantity":2,"price":149.99}"#;
    let acked = api.post(body, None).await?.acked(0)?;
    api.receipt_stored(&acked.id).await?;
    Ok(acked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_a_text_in_the_bucket_and_in_the_api() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let Acked { id, receipt, .. } = stored_order(&api).await?;
    let at = api.order(&id).await?["created_at"].as_str().unwrap_or_default().to_owned();
    // The API shows all six decimals, a receipt as many as the time needs: one order in ten ends with a zero.
    let at = at.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
    let text = format!(
        "ORDER RECEIPT\n\
         =============\n\
         Order ID:   {id}\n\
         User:       alice\n\
         Shard:      shard1 (A-M)\n\
         Product:    Mechanical Keyboard\n\
         Quantity:   2\n\
         Unit price: $149.99\n\
         Total:      $299.98\n\
         Status:     created\n\
         Created at: {at}Z\n"
    );

    let object = stack.s3().get_object().bucket(stack.bucket()).key(receipt).send().await?;
    assert_eq!(object.content_type(), Some("text/plain; charset=utf-8"));
    assert_eq!(String::from_utf8(object.body.collect().await?.to_vec())?, text);

    let reply = api.receipt(&id).await?;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(reply.text, text);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_was_deleted_is_missing_and_one_that_is_due_is_pending() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let Acked { id, receipt, .. } = stored_order(&api).await?;
    let text = api.receipt(&id).await?.text;

    stack.s3().delete_object().bucket(stack.bucket()).key(receipt).send().await?;
    let problem = api.receipt(&id).await?.expect_problem(404, "receipt-absent")?;
    assert_eq!(problem["receipt_status"], "missing");

    let mut shard = stack.shard(1).await?;
    sqlx::query("INSERT INTO receipt_jobs VALUES ($1::text::uuid, 0, now() + interval '1 hour')")
        .bind(&id)
        .execute(&mut shard)
        .await?;
    let problem = api.receipt(&id).await?.expect_problem(404, "receipt-absent")?;
    assert_eq!(problem["receipt_status"], "pending");
    assert_eq!(api.order(&id).await?["receipt_status"], "pending");

    sqlx::query("UPDATE receipt_jobs SET available_at = now()").execute(&mut shard).await?;
    api.receipt_stored(&id).await?;
    assert_eq!(api.receipt(&id).await?.text, text, "written again, it is another text");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_s3_an_order_is_accepted_and_its_receipt_pending() -> Result<()> {
    let stack = Stack::shared().await?;
    let closed = format!("http://127.0.0.1:{}", port::free()?);
    let producer = stack.producer().env("S3_ENDPOINT", closed).start().await?;
    dependencies_up(&producer, &["shard1", "shard2"]).await?;
    let api = Api::new(&producer)?;
    let id = api.place("alice", None).await?.acked(0)?.id;

    let reply = api.receipt(&id).await?;
    reply.expect_problem(503, "s3-unavailable")?;
    assert!(reply.header("retry-after").is_some(), "{reply:?}");
    assert_eq!(api.order(&id).await?["receipt_status"], "pending");
    eventually("S3 to be reported as down", PATIENCE, async || {
        let readiness = readiness(&producer).await?.json();
        ensure!(readiness["dependencies"]["s3"]["status"] == "down", "{readiness}");
        Ok(())
    })
    .await?;
    producer.ready(PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_order_is_not_found() -> Result<()> {
    let stack = Stack::shared().await?;
    let (_producer, api) = serving(&stack).await?;
    let missing = uuid::Uuid::now_v7();
    for path in [format!("/api/orders/{missing}"), format!("/api/orders/{missing}/receipt")] {
        api.get(&path).await?.expect_problem(404, "not-found")?;
    }
    Ok(())
}
