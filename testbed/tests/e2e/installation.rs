//! An installation as a user does it: two charts, one resource.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    Clock,
    cluster::{Cluster, variable},
};

pub const OPERATOR: &str = "orderflow-operator";
pub const BACKING: &str = "orderflow-backing";

pub struct Installation {
    /// The address of the API for clients of the cluster: through kube-proxy, as inside of it.
    pub url: String,
    pub version: String,
}

impl Installation {
    /// Installs everything and waits until the resource is ready.
    pub async fn install(cluster: &Cluster, clock: &Clock) -> Result<Self> {
        let version = variable("E2E_VERSION")?;
        if !cluster.is_kind() {
            cluster.kubectl.apply(&here("testbed/tests/e2e/manifests/kafka.yaml")).await?;
        }
        cluster.helm.install(BACKING, &here("charts/orderflow-backing"), &backing(cluster)).await?;
        cluster
            .helm
            .install(OPERATOR, &here("charts/orderflow-operator"), &operator_values(&version, &version))
            .await?;
        for set in ["statefulset/postgres-shard1", "statefulset/postgres-shard2", "deployment/localstack"] {
            cluster.kubectl.wait(&["rollout", "status", set]).await?;
        }
        if cluster.is_kind() {
            cluster.kubectl.wait(&["wait", "--for=condition=Ready", "kafka/orderflow"]).await?;
        } else {
            cluster.kubectl.wait(&["rollout", "status", "statefulset/kafka"]).await?;
        }
        clock.print("the backing services are up");
        cluster.kubectl.wait(&["rollout", "status", "deployment/orderflow-operator"]).await?;
        cluster.helm.run(&["test", OPERATOR, "--timeout=2m"]).await.context("helm test")?;
        clock.print("the operator is up, and helm test passes");

        let applied = Instant::now();
        cluster.kubectl.apply(&here("examples/orderflow.yaml")).await?;
        cluster.kubectl.wait(&["wait", "--for=condition=Ready", "orderflow/orderflow"]).await?;
        clock.print(&format!("ready {:.1?} after kubectl apply", applied.elapsed()));
        Ok(Self { url: node_port(cluster).await?, version })
    }

    /// Upgrades the operator's chart with other values.
    pub async fn upgrade_operator(&self, cluster: &Cluster, tag: &str, producer_tag: &str) -> Result<()> {
        let values = operator_values(tag, producer_tag);
        cluster.helm.upgrade(OPERATOR, &here("charts/orderflow-operator"), &values).await?;
        cluster.kubectl.wait(&["rollout", "status", "deployment/orderflow-operator"]).await
    }

    /// Uninstalls in the order of the README. What the charts promise to keep is kept.
    pub async fn uninstall(&self, cluster: &Cluster) -> Result<()> {
        cluster.kubectl.run(&["delete", "orderflow", "orderflow", "--wait"]).await?;
        cluster.helm.uninstall(OPERATOR, &["--wait", "--timeout=5m"]).await?;
        cluster.helm.uninstall(BACKING, &["--wait", "--timeout=5m"]).await?;
        let claims = cluster.kubectl.get(&["persistentvolumeclaims"]).await?;
        let kept = claims["items"].as_array().map_or(0, Vec::len);
        ensure!(kept >= 2, "the databases' volumes must stay, but only {kept} claims exist");
        Ok(())
    }
}

/// Returns a file of the checkout.
fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn backing(cluster: &Cluster) -> Value {
    if cluster.is_kind() {
        return json!({});
    }
    // The images of a node without a registry.
    json!({
        "postgres": { "image": { "tag": "local" }, "storage": { "className": "standard" } },
        "localstack": { "image": { "tag": "local" } },
        "kafka": { "enabled": false },
    })
}

fn operator_values(tag: &str, producer_tag: &str) -> Value {
    json!({ "image": { "tag": tag }, "producerImage": { "tag": producer_tag } })
}

/// Creates a Service of the test's own for the producers' pods: `kubectl port-forward` would stay with one pod to its
/// end. Its clients are outside of the cluster, so the resource must name them; kind's network enforces that.
async fn node_port(cluster: &Cluster) -> Result<String> {
    let all_clients = json!({ "spec": { "networkPolicy": { "clients": [{ "ipBlock": { "cidr": "0.0.0.0/0" } }] } } });
    cluster.kubectl.run(&["patch", "orderflow/orderflow", "--type=merge", "-p", &all_clients.to_string()]).await?;
    let named = "--for=jsonpath={.spec.ingress[0].from[0].ipBlock.cidr}=0.0.0.0/0";
    cluster.kubectl.wait(&["wait", named, "networkpolicy/orderflow-producer"]).await?;
    let own = cluster.kubectl.get(&["service", "orderflow-producer"]).await?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "clients" },
        "spec": {
            "type": "NodePort",
            "selector": own["spec"]["selector"],
            "ports": [{ "port": 8080, "targetPort": "http" }],
        },
    });
    cluster.kubectl.apply_value("clients", &service).await?;
    let port = cluster.kubectl.get(&["service", "clients"]).await?["spec"]["ports"][0]["nodePort"].clone();
    let nodes = cluster.kubectl.get(&["nodes"]).await?;
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().context("a node has no address")?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP").context("no internal address")?;
    Ok(format!("http://{}:{port}", internal["address"].as_str().context("an address is text")?))
}
