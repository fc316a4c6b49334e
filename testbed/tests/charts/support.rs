//! What every test of the charts starts from: a namespace of its own on the shared API server, and Helm in it.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Client};
use orderflow_testbed::{Helm, Kubernetes, eventually, folder};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// For everything that only has to happen; generous, because nothing is decided by it.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The namespace of one test.
pub struct Site {
    pub kubernetes: &'static Kubernetes,
    /// With all rights.
    pub client: Client,
    pub namespace: String,
    pub helm: Helm,
}

impl Site {
    pub async fn new() -> Result<Self> {
        Self::labelled(json!({})).await
    }

    /// One that only takes pods of this level of Pod Security: `restricted`, `baseline`.
    pub async fn enforcing(level: &str) -> Result<Self> {
        Self::labelled(json!({ "pod-security.kubernetes.io/enforce": level })).await
    }

    async fn labelled(labels: Value) -> Result<Self> {
        let kubernetes = kubernetes().await?;
        let client = kubernetes.client()?;
        let tag = Uuid::now_v7().simple().to_string().split_off(24);
        let namespace = format!("test-{tag}");
        let object: Namespace = serde_json::from_value(json!({ "metadata": { "name": namespace, "labels": labels } }))?;
        Api::all(client.clone()).create(&PostParams::default(), &object).await.context("make a namespace")?;
        let helm = Helm::new(folder::of_this_test_process()?, kubernetes.admin_kubeconfig(), &namespace)?;
        Ok(Self { kubernetes, client, namespace, helm })
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Where an object of this kind is kept: the namespace that it names, else the test's own.
    pub async fn api_of(&self, object: &Value) -> Result<Api<DynamicObject>> {
        let (resource, scope) = resource(&self.client, object).await?;
        Ok(match scope {
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            Scope::Namespaced => {
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&self.namespace);
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
        })
    }

    /// Has the API server look at an object as if it were applied. A field that its kind does not have is an error.
    pub async fn dry_run(&self, object: &Value) -> Result<()> {
        let parameters = PatchParams::apply("test").force().dry_run().validation_strict();
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let answer = self.api_of(object).await?.patch(name, &parameters, &Patch::Apply(object)).await;
        drop(answer.with_context(|| format!("dry run of {}\n{object:#}", title(object)))?);
        Ok(())
    }

    /// Makes an object, or makes it so.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let parameters = PatchParams::apply("test").force();
        let answer = self.api_of(object).await?.patch(name, &parameters, &Patch::Apply(object)).await;
        drop(answer.with_context(|| format!("apply {}", title(object)))?);
        Ok(())
    }

    /// Has the API server look at a pod as if it were created, with the admission of this namespace.
    pub async fn dry_run_pod(&self, template: &Value) -> Result<()> {
        // No pod is admitted whose account is not there.
        if let Some(account) = template["spec"]["serviceAccountName"].as_str() {
            let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": account } });
            self.apply(&account).await?;
        }
        let mut pod = template.clone();
        pod["metadata"]["name"] = json!("as-a-pod");
        let pod: Pod = serde_json::from_value(pod).with_context(|| format!("{template:#}"))?;
        let parameters = PostParams { dry_run: true, field_manager: None };
        drop(self.api::<Pod>().create(&parameters, &pod).await?);
        Ok(())
    }
}

/// `Kind/name`.
pub fn title(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// The documents of a YAML stream that say anything.
pub fn objects(manifests: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifests).context("read YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The pod that an object makes, with the volumes that its controller would add.
pub fn pod_template(object: &Value) -> Option<Value> {
    let spec = &object["spec"];
    let mut template = match object["kind"].as_str()? {
        "Pod" => json!({ "metadata": { "labels": object["metadata"]["labels"] }, "spec": spec }),
        "CronJob" => spec["jobTemplate"]["spec"]["template"].clone(),
        "DaemonSet" | "Deployment" | "Job" | "ReplicaSet" | "StatefulSet" => spec["template"].clone(),
        _ => return None,
    };
    let claims = spec["volumeClaimTemplates"].as_array().into_iter().flatten();
    let volumes: Vec<Value> = template["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .cloned()
        .chain(claims.map(|claim| {
            json!({ "name": claim["metadata"]["name"], "persistentVolumeClaim": { "claimName": claim["metadata"]["name"] } })
        }))
        .collect();
    template["spec"]["volumes"] = Value::Array(volumes);
    Some(template)
}

/// A chart of this repository.
pub fn chart(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts").join(name)
}

/// The shared control plane, with Strimzi's kinds if their definitions are on this machine.
pub async fn kubernetes() -> Result<&'static Kubernetes> {
    static SHARED: OnceCell<Kubernetes> = OnceCell::const_new();
    SHARED
        .get_or_try_init(async || {
            let kubernetes = Kubernetes::start(folder::of_this_test_process()?, "kubernetes").await?;
            let client = kubernetes.client()?;
            if let Some(folder) = strimzi()? {
                install_definitions(&client, &folder).await?;
            }
            Ok(kubernetes)
        })
        .await
}

/// The folder with the definitions of Strimzi's kinds, if there is one on this machine.
pub fn strimzi() -> Result<Option<PathBuf>> {
    if let Some(folder) = std::env::var_os("STRIMZI_CRDS").filter(|folder| !folder.is_empty()) {
        let folder = PathBuf::from(folder);
        ensure!(folder.is_dir(), "STRIMZI_CRDS ({}) is no folder", folder.display());
        return Ok(Some(folder));
    }
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/strimzi-1.2.0-crds");
    Ok(beside.is_dir().then_some(beside))
}

/// Whether the API server has Strimzi's kinds. If not, says on the terminal what is not tested.
pub fn has_strimzi(skipped: &str) -> Result<bool> {
    let found = strimzi()?.is_some();
    if !found {
        // The harness keeps what `eprintln!` says of a test that succeeds.
        writeln!(
            std::io::stderr(),
            "SKIPPED, {skipped}: no definitions of Strimzi's kinds (STRIMZI_CRDS names no folder with them)"
        )?;
    }
    Ok(found)
}

async fn install_definitions(client: &Client, folder: &Path) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let file = entry?.path();
        let text = std::fs::read_to_string(&file)?;
        for definition in objects(&text).with_context(|| format!("read {}", file.display()))? {
            let name = definition["metadata"]["name"].as_str().context("a definition without a name")?;
            api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&definition)).await?;
            eventually(&format!("{name} to be served"), PATIENCE, async || {
                let conditions = api.get(name).await?.status.unwrap_or_default().conditions.unwrap_or_default();
                ensure!(conditions.iter().any(|found| found.type_ == "Established" && found.status == "True"));
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

/// What the API server says of an object's kind; each kind is asked for once.
async fn resource(client: &Client, object: &Value) -> Result<(ApiResource, Scope)> {
    static KNOWN: Mutex<Option<HashMap<GroupVersionKind, (ApiResource, Scope)>>> = Mutex::new(None);
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let (Some(version), Some(kind)) = (text(&object["apiVersion"]), text(&object["kind"])) else {
        bail!("no object: {object}");
    };
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = GroupVersionKind::gvk(group, version, &kind);
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|all| all.get(&kind).cloned());
    if let Some(known) = known {
        return Ok(known);
    }
    let (resource, capabilities) =
        pinned_kind(client, &kind).await.with_context(|| format!("find {}", title(object)))?;
    let found = (resource, capabilities.scope);
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(kind, found.clone());
    Ok(found)
}
