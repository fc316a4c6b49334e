//! Support of the charts' tests: a namespace of its own on the shared API server, with Helm, and the objects in it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    discovery::{Discovery, Scope, pinned_kind},
};
use orderflow_testbed::{Helm, Kubernetes, folder, helm::Release, kubernetes::FakeKubelet};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    control_plane::kubernetes,
    files::{BACKING, OPERATOR, chart, title},
};

/// The namespace of the release with the definition; all others are installed without.
const DEFINITION_NAMESPACE: &str = "orderflow-definition";

/// The namespace of one test.
pub struct Site {
    pub kubernetes: &'static Kubernetes,
    /// The client of the test, with all rights.
    pub client: Client,
    pub namespace: String,
    pub helm: Helm,
}

impl Site {
    pub async fn new() -> Result<Self> {
        Self::labelled(json!({})).await
    }

    /// Creates a site that only accepts pods of this level of Pod Security: `restricted`, `baseline`.
    pub async fn enforcing(level: &str) -> Result<Self> {
        Self::labelled(json!({ "pod-security.kubernetes.io/enforce": level })).await
    }

    async fn labelled(labels: Value) -> Result<Self> {
        let tag = Uuid::now_v7().simple().to_string().split_off(24);
        Self::called(kubernetes().await?, &format!("test-{tag}"), labels).await
    }

    async fn called(kubernetes: &'static Kubernetes, namespace: &str, labels: Value) -> Result<Self> {
        let client = kubernetes.client()?;
        let site = Self {
            kubernetes,
            client,
            namespace: namespace.to_owned(),
            helm: Helm::new(folder::for_test_process()?, kubernetes.admin_kubeconfig(), namespace)?,
        };
        let metadata = json!({ "name": namespace, "labels": labels });
        site.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata })).await?;
        Ok(site)
    }

    /// Returns the site of the release with the definition. One test works with it.
    pub async fn of_the_definition(kubernetes: &'static Kubernetes) -> Result<Self> {
        Self::called(kubernetes, DEFINITION_NAMESPACE, json!({})).await
    }

    /// Installs the operator's chart without the definition.
    pub async fn install_operator(&self, values: Value) -> Result<Release> {
        self.helm.install(OPERATOR, &chart(OPERATOR), &without_definition(values)).await
    }

    pub async fn upgrade_operator(&self, values: Value) -> Result<Release> {
        self.helm.upgrade(OPERATOR, &chart(OPERATOR), &without_definition(values)).await
    }

    /// Installs the chart of the backing services without Kafka.
    pub async fn install_backing(&self, values: Value) -> Result<Release> {
        self.helm.install(BACKING, &chart(BACKING), &without_kafka(values)).await
    }

    pub async fn upgrade_backing(&self, values: Value) -> Result<Release> {
        self.helm.upgrade(BACKING, &chart(BACKING), &without_kafka(values)).await
    }

    /// Returns the live object of a manifest.
    pub async fn live(&self, object: &Value) -> Result<Value> {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let live = self.api_of(object).await?.get(name).await.with_context(|| format!("get {}", title(object)))?;
        Ok(serde_json::to_value(live)?)
    }

    /// Returns a live object of the namespace, by `apiVersion`, `kind` and name.
    pub async fn get(&self, version: &str, kind: &str, name: &str) -> Result<Value> {
        self.live(&json!({ "apiVersion": version, "kind": kind, "metadata": { "name": name } })).await
    }

    /// Returns `Kind/name` of everything in the namespace, and of everything that a release in it has created outside.
    /// Objects that Kubernetes creates itself, and the records of Helm, are left out.
    pub async fn everything(&self) -> Result<BTreeSet<String>> {
        let discovery = Discovery::new(self.client.clone()).run().await.context("list the kinds")?;
        let mut found = BTreeSet::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                if !capabilities.supports_operation("list") || resource.kind == "Event" {
                    continue;
                }
                let api: Api<DynamicObject> = match capabilities.scope {
                    Scope::Cluster => Api::all_with(self.client.clone(), &resource),
                    Scope::Namespaced => Api::namespaced_with(self.client.clone(), &self.namespace, &resource),
                };
                let here = |object: &DynamicObject| match capabilities.scope {
                    Scope::Cluster => {
                        object.annotations().get("meta.helm.sh/release-namespace") == Some(&self.namespace)
                    }
                    Scope::Namespaced => true,
                };
                let objects = api.list(&ListParams::default()).await.with_context(|| resource.plural.clone())?;
                let titles = objects
                    .iter()
                    .filter(|object| here(object))
                    .map(|object| format!("{}/{}", resource.kind, object.name_any()));
                found.extend(titles.filter(|title| !is_always_there(title)));
            }
        }
        Ok(found)
    }

    /// Marks every pod of this namespace as ready, because no node runs.
    pub fn kubelet(&self) -> FakeKubelet {
        FakeKubelet::start(self.api())
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Returns the API for this object: in the namespace that it names, else in the test's own.
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

    /// Validates an object as if it were applied. A field that its kind does not have is an error.
    pub async fn dry_run(&self, object: &Value) -> Result<()> {
        if object["kind"] == "Pod" {
            self.make_account_of(object).await?;
        }
        let parameters = PatchParams::apply("test").force().dry_run().validation_strict();
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let answer = self.api_of(object).await?.patch(name, &parameters, &Patch::Apply(object)).await;
        answer.map(drop).with_context(|| format!("dry run of {}", title(object)))
    }

    /// Creates or updates an object.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().context("an object without a name")?;
        let parameters = PatchParams::apply("test").force();
        let answer = self.api_of(object).await?.patch(name, &parameters, &Patch::Apply(object)).await;
        drop(answer.with_context(|| format!("apply {}", title(object)))?);
        Ok(())
    }

    /// Validates a pod as if it were created here, with the admission of this namespace.
    pub async fn dry_run_pod(&self, template: &Value) -> Result<()> {
        let mut pod = template.clone();
        pod["metadata"]["name"] = json!("as-a-pod");
        self.make_account_of(&pod).await?;
        let pod: Pod = serde_json::from_value(pod).with_context(|| template.to_string())?;
        let parameters = PostParams { dry_run: true, field_manager: None };
        drop(self.api::<Pod>().create(&parameters, &pod).await?);
        Ok(())
    }

    /// Creates the account of a pod, without which it is not admitted.
    async fn make_account_of(&self, pod: &Value) -> Result<()> {
        let Some(account) = pod["spec"]["serviceAccountName"].as_str() else { return Ok(()) };
        let metadata = json!({ "name": account, "namespace": pod["metadata"]["namespace"] });
        self.apply(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata })).await
    }
}

/// Returns whether an object exists in every namespace, or is a record of Helm.
fn is_always_there(title: &str) -> bool {
    title == "ServiceAccount/default"
        || title == "ConfigMap/kube-root-ca.crt"
        || title.starts_with("Secret/sh.helm.release.")
}

fn without_definition(mut values: Value) -> Value {
    values["crds"] = json!({ "install": false });
    values
}

fn without_kafka(mut values: Value) -> Value {
    values["kafka"] = json!({ "enabled": false });
    values
}

/// Returns the API server's description of an object's kind; each kind is requested once.
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
