//! The cluster of the test: a node of the testbed's own, with images that were built here and a Kafka of ours; or a
//! cluster of kind, with Strimzi.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use orderflow_testbed::{Helm, Kubernetes, command, folder, kubernetes::Node, tools};
use serde_json::json;

use crate::{installation, kubectl::Kubectl};

/// The namespace of all objects but the definition and the roles for its users.
const NAMESPACE: &str = "orderflow-e2e";

const DEFINITION: &str = "customresourcedefinition/orderflows.orderflow.dev";

pub struct Cluster {
    pub kubectl: Kubectl,
    pub helm: Helm,
    pub kind: Kind,
}

pub enum Kind {
    /// Fields are dropped in this order.
    Own {
        _running: Box<(Node, Kubernetes)>,
    },
    Kind,
}

impl Cluster {
    /// Starts the cluster that `E2E_CLUSTER` names, with an empty namespace.
    pub async fn start() -> Result<Self> {
        let folder = folder::for_test_process()?;
        let (kubeconfig, kind) = match variable("E2E_CLUSTER")?.as_str() {
            "node" => {
                let kubernetes = Kubernetes::start_for_node(folder, "kubernetes").await?;
                let images = PathBuf::from(variable("E2E_IMAGES")?);
                let node = Node::start(&kubernetes, folder, &images, &variable("E2E_CGROUP")?).await?;
                let kubeconfig = kubernetes.admin_kubeconfig().to_owned();
                (kubeconfig, Kind::Own { _running: Box::new((node, kubernetes)) })
            }
            "kind" => (kubeconfig_of_kind(folder).await?, Kind::Kind),
            other => bail!("E2E_CLUSTER is {other}: node or kind"),
        };
        let kubectl = Kubectl::new(&kubeconfig, NAMESPACE);
        require_empty(&kubectl).await?;
        let labels = json!({ "pod-security.kubernetes.io/enforce": "baseline" });
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE, "labels": labels } });
        kubectl.apply_value("namespace", &namespace).await?;
        if let Kind::Own { .. } = kind {
            volumes(&kubectl, folder).await?;
        }
        Ok(Self { helm: Helm::new(folder, &kubeconfig, NAMESPACE)?, kubectl, kind })
    }

    /// Removes everything from a cluster that outlives the test, also after an error.
    pub async fn remove(self) -> Result<()> {
        if self.is_kind() {
            for release in [installation::OPERATOR, installation::BACKING] {
                let options = ["--ignore-not-found", "--no-hooks"];
                self.helm.uninstall(release, &options).await?;
            }
            self.kubectl.run(&["delete", "namespace", NAMESPACE, "--wait"]).await?;
            // It did not exist before, so no other OrderFlow exists.
            self.kubectl.run(&["delete", DEFINITION, "--ignore-not-found"]).await?;
        }
        Ok(())
    }

    pub fn is_kind(&self) -> bool {
        matches!(self.kind, Kind::Kind)
    }

    /// Prints, after a failure, the output that a person would check next.
    pub async fn explain(&self) {
        for arguments in [
            &["get", "all,orderflows,persistentvolumeclaims", "-o", "wide"][..],
            &["describe", "orderflows,pods"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "--all-containers", "--prefix", "--tail=40", "-l", "app.kubernetes.io/name"],
        ] {
            let output = self.kubectl.run(arguments).await.unwrap_or_else(|error| format!("{error:#}"));
            println!("--- kubectl {}\n{output}", arguments.join(" "));
        }
    }
}

/// Fails unless the cluster is empty; otherwise the removal at the end would delete objects of others.
async fn require_empty(kubectl: &Kubectl) -> Result<()> {
    let namespace = format!("namespace/{NAMESPACE}");
    let there = kubectl.run(&["get", DEFINITION, &namespace, "--ignore-not-found", "--output=name"]).await?;
    ensure!(
        there.is_empty(),
        "this cluster is in use: use an empty one, or delete the objects of a killed run:\n{there}"
    );
    Ok(())
}

pub fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: start it with make e2e"))
}

/// Writes a kubeconfig of the current context alone: a user may switch to another while the test runs.
async fn kubeconfig_of_kind(folder: &Path) -> Result<PathBuf> {
    let (program, first_argument) = tools::kubectl()?;
    let mut kubectl = command::command(&program);
    kubectl.envs(["HOME", "KUBECONFIG"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    kubectl.args(first_argument).args(["config", "view", "--minify", "--raw", "-o", "json"]);
    let text = command::output(kubectl).await?;
    ensure!(text.contains("\"current-context\": \"kind-"), "the current context is none of kind: nothing was done");
    let file = folder::data(folder, "kind.kubeconfig")?;
    folder::write_private(&file, &text)?;
    Ok(file)
}

/// Creates a volume for each claim of the databases. Folders and not `hostPath`, to which the kubelet gives no group.
async fn volumes(kubectl: &Kubectl, folder: &Path) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": "standard", "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    });
    let mut objects = vec![class];
    for shard in ["shard1", "shard2"] {
        let path = folder.join("volumes").join(shard);
        folder::create(&path)?;
        let here = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [orderflow_testbed::kubernetes::NODE] });
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": { "name": shard },
            "spec": {
                "capacity": { "storage": "10Gi" },
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "standard",
                "claimRef": { "namespace": NAMESPACE, "name": format!("data-postgres-{shard}-0") },
                "local": { "path": path },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [here] }] } },
            },
        }));
    }
    kubectl.apply_value("volumes", &json!({ "apiVersion": "v1", "kind": "List", "items": objects })).await
}
