//! The control plane, the operator with its account, the resources, and the services behind them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Secret},
};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams},
};
use orderflow_testbed::{
    Kafka, Kubernetes, Operator, Postgres, Versitygw, eventually,
    operator::{self, create, create_account, install_definition},
    product::Environment,
    versitygw,
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::backing::{PATIENCE, metric};

pub const RESOURCES: usize = 200;
pub const NAMESPACE: &str = "bench";
const S3_SECRET: &str = "s3-credentials";

/// The pause between two checks for a change: short compared with the time that the change takes.
const INTERVAL: Duration = Duration::from_millis(5);

/// The control plane and the services behind the resources.
pub struct World {
    pub kubernetes: Kubernetes,
    postgres: Postgres,
    kafka: Kafka,
    s3: Versitygw,
    /// The client of the benchmark, with all rights; never the operator's.
    client: Client,
    /// The kubeconfig of the operator.
    kubeconfig: PathBuf,
    folder: PathBuf,
}

impl World {
    pub async fn start(folder: &Path) -> Result<Self> {
        let (kubernetes, postgres, kafka, s3) = tokio::try_join!(
            Kubernetes::start(folder, "kubernetes"),
            Postgres::start(folder, "postgres"),
            Kafka::start(folder, "kafka"),
            Versitygw::start(folder, "s3"),
        )?;
        let client = kubernetes.client()?;
        install_definition(&client).await?;
        create::<Namespace>(&Api::all(client.clone()), json!({ "metadata": { "name": NAMESPACE } })).await?;
        let kubeconfig = create_account(&kubernetes, &client, NAMESPACE).await?;
        let world = Self { kubernetes, postgres, kafka, s3, client, kubeconfig, folder: folder.to_owned() };
        world.create_secrets().await?;
        Ok(world)
    }

    /// Creates a database for each resource, and the Secrets that they name.
    async fn create_secrets(&self) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let credentials = json!({
            "AWS_ACCESS_KEY_ID": versitygw::ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": versitygw::SECRET_ACCESS_KEY,
        });
        create(&secrets, json!({ "metadata": { "name": S3_SECRET }, "stringData": credentials })).await?;
        for number in 0..RESOURCES {
            let name = name_of(number);
            let dsn = self.postgres.create_database(&name).await?;
            create(&secrets, json!({ "metadata": { "name": name }, "stringData": { "dsn": dsn } })).await?;
        }
        Ok(())
    }

    /// Starts the operator, and waits until it leads.
    pub async fn operator(&self, probe_seconds: u32) -> Result<Operator> {
        let environment = [("POD_NAMESPACE", NAMESPACE.to_owned()), ("PROBE_SECONDS", probe_seconds.to_string())];
        let environment: Environment = environment.map(|(name, value)| (name.to_owned(), value)).into();
        let name = format!("operator-{probe_seconds}");
        let operator = Operator::start(&self.folder, &name, &self.kubeconfig, environment).await?;
        eventually("the operator to lead", PATIENCE, async || {
            let leads = metric(&operator.admin_url()?, "orderflow_operator_leader").await?;
            ensure!(leads > 0.5, "it does not lead");
            Ok(())
        })
        .await?;
        Ok(operator)
    }

    fn resources(&self) -> Api<DynamicObject> {
        operator::orderflows(self.client.clone(), NAMESPACE)
    }

    pub async fn create_resources(&self) -> Result<()> {
        let resources = self.resources();
        for number in 0..RESOURCES {
            let name = name_of(number);
            let resource = json!({
                "apiVersion": "orderflow.dev/v1alpha1",
                "kind": "OrderFlow",
                "metadata": { "name": name },
                "spec": {
                    "shards": [{ "name": "all", "users": "A-Z", "dsnSecretRef": { "name": name, "key": "dsn" } }],
                    "bucket": {
                        "name": name,
                        "endpoint": self.s3.endpoint(),
                        "credentialsSecretRef": { "name": S3_SECRET },
                    },
                    "topic": { "name": name, "bootstrapServers": self.kafka.bootstrap(), "partitions": 1 },
                    "producer": { "replicas": 0 },
                    "consumer": { "replicas": 0 },
                },
            });
            create(&resources, resource).await?;
        }
        Ok(())
    }

    /// Checks that the resources' status agrees with the operator's metrics.
    pub async fn expect_all_observed(&self) -> Result<()> {
        let resources = self.resources().list(&ListParams::default()).await.context("list the resources")?;
        let observed = resources.iter().filter(|resource| is_observed(resource)).count();
        ensure!(observed == RESOURCES, "only {observed} resources have a status of their generation");
        Ok(())
    }

    /// Changes the image of a resource's producers. Returns how long it takes until their Deployment has it, and until
    /// the status has observed the new generation.
    pub async fn change(&self, number: usize) -> Result<[Duration; 2]> {
        let (name, image) = (name_of(number), format!("example.com/producer:{number}"));
        let producers = format!("{name}-producer");
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), NAMESPACE);
        let resources = self.resources();
        let patch = Patch::Merge(json!({ "spec": { "producer": { "image": image } } }));
        let began = Instant::now();
        resources.patch(&name, &PatchParams::default(), &patch).await.context("change a resource")?;
        until("the Deployment to have the new image", async || {
            let deployment = deployments.get(&producers).await.context("read a Deployment")?;
            anyhow::Ok(image_of(&deployment) == Some(image.as_str()))
        })
        .await?;
        let acted = began.elapsed();
        until("the new generation to be observed", async || {
            anyhow::Ok(is_observed(&resources.get(&name).await.context("read a resource")?))
        })
        .await?;
        let observed = began.elapsed();
        // The consequences are over before the next change.
        until("the resource to be ready again", async || {
            let resource = resources.get(&name).await.context("read a resource")?;
            anyhow::Ok(is_observed(&resource) && is_ready(&resource))
        })
        .await?;
        Ok([acted, observed])
    }
}

fn name_of(number: usize) -> String {
    format!("flow-{number}")
}

fn image_of(deployment: &Deployment) -> Option<&str> {
    deployment.spec.as_ref()?.template.spec.as_ref()?.containers.first()?.image.as_deref()
}

fn is_observed(resource: &DynamicObject) -> bool {
    let observed = resource.data["status"]["observedGeneration"].as_i64();
    observed.is_some() && observed == resource.metadata.generation
}

fn is_ready(resource: &DynamicObject) -> bool {
    let conditions = resource.data["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Repeats a check more often than `eventually` does.
async fn until(what: &str, holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds().await? {
        ensure!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        sleep(INTERVAL).await;
    }
    Ok(())
}
