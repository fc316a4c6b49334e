//! An S3 that loses everything when it dies is outside of the promise. `verify --repair` restores its receipts while
//! orders flow, and then the checker must find every receipt.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use orderflow_proof::{
    checker,
    client::{self, Clients},
    history::{Clock, Recorder},
    observation::Sites,
};
use orderflow_testbed::{Service, Stack, Store, eventually, folder, wait::PATIENCE};
use tokio::sync::oneshot;

#[tokio::test(flavor = "multi_thread")]
async fn repair_restores_all_receipts_that_s3_forgot() -> Result<()> {
    let stack = Stack::builder().own().store(Store::Localstack).start().await?;
    let producer = stack.producer().env("S3_TIMEOUT_MS", "500").env("RECEIPT_LEASE_MS", "5000").start().await?;
    let _consumer = stack.consumer().start().await?;
    let sites = Sites::new(&stack);
    let recorder = Arc::new(Recorder::create(&folder::for_test_process()?.join("forgetful.history.jsonl"))?);
    let only = client::Producer { name: "only".to_owned(), url: producer.url()? };
    let clients = Clients { seed: 9, producers: vec![only], recorder: recorder.clone(), clock: Clock::start() };
    let (_running, stopped) = oneshot::channel();
    let orders = tokio::spawn(Arc::new(clients).run(0, 600, 50, stopped));

    eventually("some receipts to exist", PATIENCE, async || {
        let page = stack.s3().list_objects_v2().bucket(stack.bucket()).send().await?;
        ensure!(page.key_count().unwrap_or_default() >= 100, "{:?}", page.key_count());
        Ok(())
    })
    .await?;
    stack.object_store().kill();
    stack.object_store().start_again().await?;
    stack.provision().await?;
    let repaired = stack.verify(&["--repair"]).await?;
    ensure!(repaired.status.success(), "{}", repaired.output);
    ensure!(!repaired.output.contains("queued again: 0 receipts"), "no receipt was lost: {}", repaired.output);

    orders.await??;
    sites.settled(PATIENCE).await?;
    let history = Arc::into_inner(recorder).context("a client still writes")?.finish()?;
    let verdict = checker::check(&history, &sites.observe().await?);
    ensure!(verdict.passed(), "{:#?}", verdict.findings);
    let verified = stack.verify(&[]).await?;
    ensure!(verified.status.success(), "the checker passed, but verify failed: {}", verified.output);
    Ok(())
}
