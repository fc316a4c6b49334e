//! Releases of the chart of the backing services: databases and their passwords stay together throughout a release's
//! life.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use orderflow_testbed::{eventually, wait::PATIENCE};
use serde_json::json;
use sqlx::postgres::PgConnectOptions;

use crate::{
    control_plane::has_strimzi,
    files::{BACKING, chart, objects},
    site::Site,
};

const SHARDS: [&str; 2] = ["shard1", "shard2"];

/// Returns the content of a Secret, as text.
async fn secret(site: &Site, name: &str) -> Result<BTreeMap<String, String>> {
    let data = site.api::<Secret>().get(name).await.with_context(|| name.to_owned())?.data.unwrap_or_default();
    data.into_iter().map(|(key, value)| Ok((key, String::from_utf8(value.0)?))).collect()
}

/// Returns both shards' Secrets.
async fn secrets(site: &Site) -> Result<[BTreeMap<String, String>; 2]> {
    Ok([secret(site, "postgres-shard1").await?, secret(site, "postgres-shard2").await?])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_database_gets_its_own_password_and_a_matching_dsn() -> Result<()> {
    let site = Site::new().await?;
    site.install_backing(json!({})).await?;
    let secrets = secrets(&site).await?;
    ensure!(secrets[0]["password"] != secrets[1]["password"], "one for both");
    for (shard, secret) in SHARDS.iter().zip(&secrets) {
        ensure!(secret["password"].len() >= 24, "{shard}: a short password");
        says_the_same(&site, shard, secret)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_password_is_used_whatever_its_characters() -> Result<()> {
    let site = Site::new().await?;
    let given = "p@ss:w/o%rd+&=?#\"'$\\ü";
    site.install_backing(json!({ "postgres": { "password": given } })).await?;
    for (shard, secret) in SHARDS.iter().zip(&secrets(&site).await?) {
        ensure!(secret["password"] == given, "{shard}: {}", secret["password"]);
        says_the_same(&site, shard, secret)?;
    }
    Ok(())
}

/// Parsed with the client library that the producers use.
fn says_the_same(site: &Site, shard: &str, secret: &BTreeMap<String, String>) -> Result<()> {
    let dsn: PgConnectOptions = secret["dsn"].parse().with_context(|| format!("{shard}: {}", secret["dsn"]))?;
    ensure!(dsn.get_host() == format!("postgres-{shard}.{}.svc", site.namespace), "{}", secret["dsn"]);
    ensure!(dsn.get_port() == 5432, "{}", secret["dsn"]);
    ensure!(dsn.get_username() == secret["username"], "{}", secret["dsn"]);
    ensure!(dsn.get_database() == Some(&secret["database"]), "{}", secret["dsn"]);
    let password = format!("{dsn:?}").contains(&format!("password: Some({:?})", secret["password"]));
    ensure!(password, "{dsn:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_survive_upgrades_and_a_new_installation() -> Result<()> {
    let site = Site::new().await?;
    site.install_backing(json!({})).await?;
    let made = secrets(&site).await?;
    for upgrade in ["the first", "the second"] {
        site.upgrade_backing(json!({ "localstack": { "enabled": upgrade == "the first" } })).await?;
        ensure!(secrets(&site).await? == made, "{upgrade} upgrade created other passwords");
    }
    // Some upgrade with the values given before, instead of all of them.
    let chart = chart(BACKING).display().to_string();
    site.helm.run(&["upgrade", BACKING, &chart, "--reuse-values"]).await?;
    ensure!(secrets(&site).await? == made, "an upgrade that reuses values created other passwords");

    site.helm.uninstall(BACKING, &[]).await?;
    ensure!(secrets(&site).await? == made, "the removal changed passwords");
    site.install_backing(json!({})).await?;
    ensure!(secrets(&site).await? == made, "the new installation created other passwords");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_differs_from_the_databases_is_refused() -> Result<()> {
    let site = Site::new().await?;
    site.install_backing(json!({ "postgres": { "password": "the-first" } })).await?;
    site.upgrade_backing(json!({ "postgres": { "password": "the-first" } })).await?;
    site.upgrade_backing(json!({})).await?;
    let before = secrets(&site).await?;
    let refused = site.upgrade_backing(json!({ "postgres": { "password": "the-second" } })).await;
    let refused = format!("{:#}", refused.err().context("it was taken")?);
    // Helm's message follows the command, which contains the values.
    let (_, refused) = refused.split_once("Error: ").context(refused.clone())?;
    ensure!(refused.contains("postgres.password") && refused.contains("README.md"), "{refused}");
    ensure!(!refused.contains("the-first") && !refused.contains("the-second"), "it shows a password: {refused}");
    ensure!(secrets(&site).await? == before, "it was changed nevertheless");
    Ok(())
}

/// The steps of its README under "Changing the password".
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_creates_a_new_password_after_the_secret_was_deleted() -> Result<()> {
    let site = Site::new().await?;
    site.install_backing(json!({})).await?;
    let before = secrets(&site).await?;
    site.api::<Secret>().delete("postgres-shard1", &kube::api::DeleteParams::default()).await?;
    site.upgrade_backing(json!({})).await?;
    let after = secrets(&site).await?;
    ensure!(after[0]["password"] != before[0]["password"], "it has the former one");
    says_the_same(&site, "shard1", &after[0])?;
    ensure!(after[1] == before[1], "the other shard's changed, too");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_keeps_only_the_objects_that_hold_data() -> Result<()> {
    let site = Site::new().await?;
    let kafka = has_strimzi("that Kafka outlives the release")?;
    let values = json!({ "kafka": { "enabled": kafka } });
    site.helm.install(BACKING, &chart(BACKING), &values).await?;
    let mut kept: BTreeSet<String> = [
        "PersistentVolumeClaim/data-postgres-shard1-0",
        "PersistentVolumeClaim/data-postgres-shard2-0",
        "Secret/postgres-shard1",
        "Secret/postgres-shard2",
    ]
    .map(ToOwned::to_owned)
    .into();
    if kafka {
        kept.extend(["Kafka/orderflow".to_owned(), "KafkaNodePool/broker".to_owned()]);
    }
    // The real controller of StatefulSets creates the claims.
    eventually("all objects to exist", PATIENCE, async || {
        let found = site.everything().await?;
        ensure!(found.is_superset(&kept) && found.contains("Pod/postgres-shard1-0"), "{found:?}");
        Ok(())
    })
    .await?;
    let claim = site.get("v1", "PersistentVolumeClaim", "data-postgres-shard1-0").await?["metadata"]["uid"].clone();

    site.helm.uninstall(BACKING, &[]).await?;
    eventually("nothing else to be left", PATIENCE, async || {
        let left = site.everything().await?;
        ensure!(left == kept, "{left:?}");
        Ok(())
    })
    .await?;

    // The same release uses it again.
    site.helm.install(BACKING, &chart(BACKING), &values).await?;
    eventually("a pod on the former volume", PATIENCE, async || {
        let found = site.everything().await?;
        ensure!(found.contains("Pod/postgres-shard1-0"), "{found:?}");
        Ok(())
    })
    .await?;
    let again = site.get("v1", "PersistentVolumeClaim", "data-postgres-shard1-0").await?["metadata"]["uid"].clone();
    ensure!(again == claim, "another volume");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_restarts_only_the_part_of_a_changed_value() -> Result<()> {
    let site = Site::new().await?;
    site.install_backing(json!({})).await?;
    let generations = async || {
        let mut found = BTreeMap::new();
        for (kind, name) in
            [("StatefulSet", "postgres-shard1"), ("StatefulSet", "postgres-shard2"), ("Deployment", "localstack")]
        {
            found.insert(name, site.get("apps/v1", kind, name).await?["metadata"]["generation"].clone());
        }
        anyhow::Ok(found)
    };
    let before = generations().await?;
    site.upgrade_backing(json!({})).await?;
    ensure!(generations().await? == before, "an upgrade without a change changed {:?}", generations().await?);
    site.upgrade_backing(json!({ "localstack": { "resources": { "requests": { "memory": "1Gi" } } } })).await?;
    let after = generations().await?;
    ensure!(after["localstack"] != before["localstack"], "LocalStack did not change");
    ensure!(after["postgres-shard1"] == before["postgres-shard1"], "Postgres changed");
    Ok(())
}

/// The names of its objects are fixed, as its README says, so the refusal names the other release.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_release_in_a_namespace_is_refused() -> Result<()> {
    let site = Site::new().await?;
    site.install_backing(json!({})).await?;
    let before = site.everything().await?;
    let values = json!({ "kafka": { "enabled": false } });
    let refused = site.helm.install("second", &chart(BACKING), &values).await.err().context("it was installed")?;
    ensure!(format!("{refused:#}").contains("invalid ownership metadata"), "{refused:#}");
    ensure!(site.everything().await?.is_superset(&before), "something went");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_strimzi_the_command_that_installs_it_is_named() -> Result<()> {
    let site = Site::new().await?;
    // It connects to no cluster, so none of its kinds are known.
    let refused =
        site.helm.render_alone(BACKING, &chart(BACKING), &json!({})).await.err().context("it was rendered")?;
    let refused = format!("{refused:#}");
    for word in ["helm install strimzi-kafka-operator", &format!("-n {}", site.namespace), "kafka.enabled=false"] {
        ensure!(refused.contains(word), "no word of {word:?}: {refused}");
    }
    site.helm.render_alone(BACKING, &chart(BACKING), &json!({ "kafka": { "enabled": false } })).await?;
    Ok(())
}

/// Tools that render without a cluster name its kinds themselves, as the chart's README tells them.
#[tokio::test(flavor = "multi_thread")]
async fn a_render_without_a_cluster_may_name_strimzis_kinds() -> Result<()> {
    let site = Site::new().await?;
    let chart = chart(BACKING).display().to_string();
    let rendered = site.helm.run(&["template", BACKING, &chart, "--api-versions=kafka.strimzi.io/v1/Kafka"]).await?;
    let kinds: BTreeSet<String> = objects(&rendered)?.iter().map(|object| object["kind"].to_string()).collect();
    ensure!(kinds.contains("\"Kafka\"") && kinds.contains("\"StatefulSet\""), "{kinds:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn strimzis_objects_follow_the_values() -> Result<()> {
    if !has_strimzi("Kafka and KafkaNodePool on a real API server")? {
        return Ok(());
    }
    let site = Site::new().await?;
    for (replicas, in_sync) in [(1, 1), (3, 2)] {
        let values = json!({
            "kafka": { "replicas": replicas },
            "postgres": { "enabled": false },
            "localstack": { "enabled": false },
        });
        // A strict validation comes first: fields that the definition does not know would be dropped without a message.
        let rendered = site.helm.render(BACKING, &chart(BACKING), &values).await?;
        let rendered = objects(&rendered.manifests())?;
        ensure!(rendered.len() == 2, "{rendered:?}");
        for object in &rendered {
            site.dry_run(object).await?;
        }
        let kafka = rendered.iter().find(|object| object["kind"] == "Kafka").context("no Kafka")?;
        ensure!(kafka["metadata"]["name"] == "orderflow", "{kafka}");
        let config = &kafka["spec"]["kafka"]["config"];
        ensure!(config["default.replication.factor"] == replicas, "{config}");
        ensure!(config["min.insync.replicas"] == in_sync, "{config}");
        ensure!(config["auto.create.topics.enable"] == false, "{config}");
        ensure!(kafka["spec"].get("entityOperator").is_none(), "{kafka}");
        let pool = rendered.iter().find(|object| object["kind"] == "KafkaNodePool").context("no KafkaNodePool")?;
        ensure!(pool["spec"]["replicas"] == replicas, "{pool}");
        ensure!(pool["metadata"]["labels"]["strimzi.io/cluster"] == "orderflow", "{pool}");
    }
    Ok(())
}
