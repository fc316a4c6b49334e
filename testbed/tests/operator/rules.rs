//! The definition on a real API server: the table of `operator/tests/rules.json`, and the refusals of the schema alone.

use anyhow::{Context, Result, ensure};
use kube::api::{DynamicObject, PostParams};
use serde_json::Value;

use crate::support::{NAME, World, merge};

const DRY_RUN: PostParams = PostParams { dry_run: true, field_manager: None };

fn table() -> Result<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../operator/tests/rules.json");
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

fn changed(base: &Value, changes: &Value) -> Value {
    let mut changed = base.clone();
    merge(&mut changed, changes);
    changed
}

fn cases<'a>(table: &'a Value, part: &str) -> Result<&'a Vec<Value>> {
    table[part].as_array().context("a list of cases")
}

fn expect(case: &Value, answer: kube::Result<DynamicObject>) -> Result<()> {
    match (case["refused"].as_str(), answer) {
        (None, answer) => drop(answer.with_context(|| format!("{case} was refused"))?),
        (Some(message), Err(kube::Error::Api(status))) => {
            ensure!(status.code == 422 && status.message.contains(message), "{case}: {}", status.message);
        }
        (Some(_), answer) => ensure!(answer.is_err(), "{case} was not refused: {answer:?}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_refuses_a_spec_that_breaks_a_rule_with_the_reason() -> Result<()> {
    let (world, table) = (World::new().await?, table()?);
    for case in cases(&table, "creations")? {
        let object = serde_json::from_value(changed(&table["base"], &case["changes"]))?;
        expect(case, world.orderflows().create(&DRY_RUN, &object).await)?;
    }
    for case in cases(&table, "schema")? {
        let object = serde_json::from_value(changed(&table["base"], &case["changes"]))?;
        let answer = world.orderflows().create(&DRY_RUN, &object).await;
        ensure!(matches!(&answer, Err(kube::Error::Api(status)) if status.code == 422), "{case}: {answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_refuses_changes_of_immutable_fields() -> Result<()> {
    let (world, table) = (World::new().await?, table()?);
    let api = world.orderflows();
    for case in cases(&table, "updates")? {
        world.create(changed(&table["base"], &case["from"])).await?;
        let mut object = serde_json::to_value(api.get(NAME).await?)?;
        merge(&mut object, &case["to"]);
        expect(case, api.replace(NAME, &DRY_RUN, &serde_json::from_value(object)?).await)?;
        api.delete(NAME, &kube::api::DeleteParams::default()).await?;
    }
    Ok(())
}
