//! The examples: the API server accepts them, they fit the backing services, and a restricted namespace accepts the
//! pods that the operator creates for them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use orderflow_testbed::{Authority, Stack, Store, eventually, wait::PATIENCE};
use serde_json::{Value, json};

use crate::{
    control_plane::has_strimzi,
    files::{BACKING, chart, example, examples, objects, pod_template, title},
    programs::{on_the_testbed, operator, put_secret, wait_for},
    site::Site,
};

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_accepts_each_example() -> Result<()> {
    let site = Site::new().await?;
    let mut kinds = BTreeSet::new();
    for file in examples()? {
        for object in example(&file)? {
            site.dry_run(&object).await.with_context(|| file.clone())?;
            kinds.insert(object["kind"].as_str().unwrap_or_default().to_owned());
        }
    }
    ensure!(kinds.iter().eq(["OrderFlow", "Secret"]), "{kinds:?}");
    Ok(())
}

/// Each Secret that an example names is in the example, or created by the chart of the backing services, and has the
/// keys that are read.
#[tokio::test(flavor = "multi_thread")]
async fn each_example_finds_its_secrets() -> Result<()> {
    let site = Site::new().await?;
    let values = json!({ "kafka": { "enabled": false } });
    let backing = objects(&site.helm.render(BACKING, &chart(BACKING), &values).await?.manifests())?;
    for file in examples()? {
        let objects = example(&file)?;
        let orderflow = objects.iter().find(|object| object["kind"] == "OrderFlow").context("no OrderFlow")?;
        let spec = &orderflow["spec"];
        let mut wanted: Vec<(String, Vec<String>)> = Vec::new();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let shards = spec["shards"].as_array().context("no shards")?;
        let keyed = shards.iter().flat_map(|shard| [&shard["dsnSecretRef"], &shard["caSecretRef"]]);
        for reference in keyed.chain([&spec["topic"]["tls"]["caSecretRef"]]).filter(|reference| !reference.is_null()) {
            wanted.push((text(&reference["name"]), vec![text(&reference["key"])]));
        }
        if let Some(name) = spec["bucket"]["credentialsSecretRef"]["name"].as_str() {
            wanted.push((name.to_owned(), ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(str::to_owned).into()));
        }
        if let Some(name) = spec["topic"]["sasl"]["secretRef"]["name"].as_str() {
            wanted.push((name.to_owned(), vec!["password".to_owned()]));
        }
        // A Secret of the example itself is not the chart's, even under the same name.
        let brings = objects.iter().any(|object| object["kind"] == "Secret");
        let secrets = if brings { &objects } else { &backing };
        for (name, keys) in wanted {
            let secret =
                secrets.iter().find(|object| object["kind"] == "Secret" && object["metadata"]["name"] == name.as_str());
            let secret = secret.with_context(|| format!("{file}: no object creates Secret {name}"))?;
            for key in keys {
                let has = !secret["data"][&key].is_null() || !secret["stringData"][&key].is_null();
                ensure!(has, "{file}: Secret {name} has no {key}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trial_finds_s3_and_kafka_where_the_chart_has_them() -> Result<()> {
    let site = Site::new().await?;
    let values = json!({ "kafka": { "enabled": has_strimzi("the address of Kafka in the trial")? } });
    let backing = objects(&site.helm.render(BACKING, &chart(BACKING), &values).await?.manifests())?;
    for file in ["orderflow.yaml", "autoscaled.yaml"] {
        let orderflow = example(file)?.remove(0);
        ensure!(orderflow["metadata"]["name"] == "orderflow", "{file}: {}", title(&orderflow));
        let endpoint = orderflow["spec"]["bucket"]["endpoint"].as_str().context("no endpoint")?;
        let s3 =
            backing.iter().find(|object| title(object) == "Service/localstack").context("no Service localstack")?;
        ensure!(endpoint == format!("http://localstack:{}", s3["spec"]["ports"][0]["port"]), "{file}: {endpoint}");
        if let Some(kafka) = backing.iter().find(|object| object["kind"] == "Kafka") {
            // Strimzi's name of the Service.
            let name = kafka["metadata"]["name"].as_str().context("a Kafka without a name")?;
            let listener = &kafka["spec"]["kafka"]["listeners"][0];
            let expected = format!("{name}-kafka-bootstrap:{}", listener["port"]);
            ensure!(orderflow["spec"]["topic"]["bootstrapServers"] == expected, "{file}: not {expected}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_namespace_accepts_the_pods_of_each_example() -> Result<()> {
    let stack = Stack::builder().store(Store::Localstack).start().await?;
    for file in examples()? {
        let site = Site::enforcing("restricted").await?;
        let release = site.install_operator(json!({})).await?;
        let _operator = operator(&site, &release).await?;
        let _kubelet = site.kubelet();
        let orderflow = on_the_testbed(&site, &stack, &file).await?;
        site.apply(&orderflow).await?;
        wait_for(&site, &orderflow, "Ready", "True").await.with_context(|| file.clone())?;
        takes_the_pods(&site, &orderflow).await.with_context(|| file.clone())?;

        // The brokers here have neither TLS nor a login. By now the Deployments exist, and follow the spec.
        let topic = example(&file)?.remove(0)["spec"]["topic"].clone();
        if !topic["tls"].is_null() {
            let authority = Authority::new("kafka")?.pem();
            put_secret(&site, "kafka-ca", &[("ca.crt", &authority)]).await?;
            put_secret(&site, "kafka-user", &[("password", "a-password")]).await?;
            let mut with_tls = orderflow.clone();
            with_tls["spec"]["topic"]["tls"] = topic["tls"].clone();
            with_tls["spec"]["topic"]["sasl"] = topic["sasl"].clone();
            site.apply(&with_tls).await?;
            eventually("Deployments that log in to Kafka", PATIENCE, async || {
                for deployment in deployments(&site, &orderflow).await? {
                    ensure!(deployment.to_string().contains("KAFKA_SASL_PASSWORD"), "{}", title(&deployment));
                }
                Ok(())
            })
            .await?;
            takes_the_pods(&site, &orderflow).await.with_context(|| format!("{file} with TLS"))?;
        }
    }
    Ok(())
}

async fn takes_the_pods(site: &Site, orderflow: &Value) -> Result<()> {
    for deployment in deployments(site, orderflow).await? {
        let template = pod_template(&deployment).context("no template")?;
        site.dry_run_pod(&template).await.with_context(|| title(&deployment))?;
    }
    Ok(())
}

/// Returns the Deployments of the producers and of the consumers.
async fn deployments(site: &Site, orderflow: &Value) -> Result<Vec<Value>> {
    let name = orderflow["metadata"]["name"].as_str().context("a resource without a name")?;
    let mut found = Vec::new();
    for component in ["producer", "consumer"] {
        found.push(site.get("apps/v1", "Deployment", &format!("{name}-{component}")).await?);
    }
    Ok(found)
}
