//! The disturbances of an installation while orders flow.

use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use orderflow_testbed::eventually;
use serde_json::Value;

use crate::{ROLLOUT, cluster::Cluster, installation::Installation};

pub struct Disturbance {
    pub name: &'static str,
    /// True if no request may fail.
    pub unnoticed: bool,
    /// True if it needs an operator with one more migration.
    pub needs_next_schema: bool,
    happening: for<'a> fn(&'a Cluster, &'a Installation) -> BoxFuture<'a, Result<()>>,
}

impl Disturbance {
    /// Causes the disturbance. Returns once the installation has recovered, or changed as intended.
    pub async fn happen(&self, cluster: &Cluster, installation: &Installation) -> Result<()> {
        (self.happening)(cluster, installation).await
    }
}

pub const ALL: [Disturbance; 6] = [
    Disturbance {
        name: "a producer's pod is deleted by force",
        // Its requests in flight may get no response.
        unnoticed: false,
        needs_next_schema: false,
        happening: |cluster, _| Box::pin(pod_is_deleted(cluster, "app.kubernetes.io/component=producer", PRODUCER)),
    },
    Disturbance {
        name: "a consumer's pod is deleted by force",
        unnoticed: true,
        needs_next_schema: false,
        happening: |cluster, _| Box::pin(pod_is_deleted(cluster, "app.kubernetes.io/component=consumer", CONSUMER)),
    },
    Disturbance {
        name: "the operator's pod is deleted by force",
        unnoticed: true,
        needs_next_schema: false,
        happening: |cluster, _| {
            Box::pin(pod_is_deleted(cluster, "app.kubernetes.io/name=orderflow-operator", OPERATOR))
        },
    },
    Disturbance {
        name: "the pod of shard 1's Postgres is deleted",
        // Users of this shard wait for it; others do not.
        unnoticed: false,
        needs_next_schema: false,
        happening: |cluster, _| Box::pin(postgres_is_deleted(cluster)),
    },
    Disturbance {
        name: "helm upgrade rolls the producers",
        unnoticed: true,
        needs_next_schema: false,
        happening: |cluster, installation| Box::pin(producers_are_rolled(cluster, installation)),
    },
    Disturbance {
        name: "helm upgrade migrates the shards under the producers of before",
        unnoticed: true,
        needs_next_schema: true,
        happening: |cluster, installation| Box::pin(shards_are_migrated(cluster, installation)),
    },
];

const PRODUCER: &str = "deployment/orderflow-producer";
const CONSUMER: &str = "deployment/orderflow-consumer";
const OPERATOR: &str = "deployment/orderflow-operator";

/// Deletes a pod by force: the API server forgets it at once, without waiting for its processes to end.
async fn pod_is_deleted(cluster: &Cluster, label: &str, deployment: &str) -> Result<()> {
    let wanted = cluster.kubectl.get(&[deployment]).await?["spec"]["replicas"].as_u64().context("no replicas")?;
    let deleted = name_of_pod(cluster, label).await?;
    cluster.kubectl.run(&["delete", "pod", &deleted, "--grace-period=0", "--force"]).await?;
    // Not by the Deployment's status, which may still be the former one.
    eventually("another pod to be ready", ROLLOUT, || async {
        let pods = cluster.kubectl.get(&["pods", "-l", label]).await?;
        let pods = pods["items"].as_array().context("no list of pods")?;
        let ready = pods.iter().filter(|pod| pod["metadata"]["name"] != deleted.as_str() && is_ready(pod)).count();
        ensure!(ready as u64 == wanted, "{ready} of {wanted} are ready");
        Ok(())
    })
    .await
}

async fn postgres_is_deleted(cluster: &Cluster) -> Result<()> {
    cluster.kubectl.run(&["delete", "pod", "postgres-shard1-0"]).await?;
    cluster.kubectl.wait(&["rollout", "status", "statefulset/postgres-shard1"]).await
}

async fn producers_are_rolled(cluster: &Cluster, installation: &Installation) -> Result<()> {
    installation.upgrade_operator(cluster, &installation.version, "next").await?;
    eventually("producers with the new image", ROLLOUT, || async {
        let producer = cluster.kubectl.get(&[PRODUCER]).await?;
        let image = producer["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
        ensure!(image.ends_with(":next"), "the image is {image}");
        Ok(())
    })
    .await?;
    cluster.kubectl.wait(&["rollout", "status", PRODUCER]).await
}

/// Starts the operator of the next version, which has one more migration; the producers stay.
async fn shards_are_migrated(cluster: &Cluster, installation: &Installation) -> Result<()> {
    let (before, schemas) = (generation(cluster).await?, schemas(cluster).await?);
    installation.upgrade_operator(cluster, "next", "next").await?;
    eventually("shards with the next schema", ROLLOUT, || async {
        let now = self::schemas(cluster).await?;
        let newer = now.iter().zip(&schemas).filter(|(now, before)| now > before).count();
        ensure!(newer == 2, "schemas were {schemas:?}, are {now:?}");
        Ok(())
    })
    .await?;
    let after = generation(cluster).await?;
    ensure!(before == after, "the producers were rolled, too: generation {before}, then {after}");
    // Ready stays true throughout, so wait until the operator has observed them after its migration.
    cluster.kubectl.wait(&["wait", "--for=condition=Ready", "orderflow/orderflow"]).await
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Returns the schema version of each shard, from the resource's status.
async fn schemas(cluster: &Cluster) -> Result<Vec<u64>> {
    let resource = cluster.kubectl.get(&["orderflow", "orderflow"]).await?;
    let shards = resource["status"]["shards"].as_array().context("the status has no shards")?;
    shards.iter().map(|shard| shard["schema"].as_u64().with_context(|| format!("no schema in {shard}"))).collect()
}

/// Returns the generation of the producers' Deployment, which counts changes of its spec.
async fn generation(cluster: &Cluster) -> Result<Value> {
    Ok(cluster.kubectl.get(&[PRODUCER]).await?["metadata"]["generation"].clone())
}

async fn name_of_pod(cluster: &Cluster, label: &str) -> Result<String> {
    let pods = cluster.kubectl.get(&["pods", "-l", label, "--sort-by=.metadata.name"]).await?;
    let name = pods["items"][0]["metadata"]["name"].as_str();
    name.map(str::to_owned).with_context(|| format!("no pod with {label}"))
}
