//! `orderflow-operator` as it is shipped, with its definition and the account that its chart gives it: never as an
//! admin.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;
use k8s_openapi::api::{authentication::v1::TokenRequest, core::v1::ServiceAccount, rbac::v1::RoleBinding};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, PostParams},
    core::GroupVersionKind,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    Kubernetes, eventually, folder,
    process::{Launch, Process},
    product::{self, Environment},
    service::{Service, wait_until_answered},
    tools,
    wait::PATIENCE,
};

/// The operator's ServiceAccount in each namespace.
pub const ACCOUNT: &str = "orderflow-operator";

/// The CustomResourceDefinition of `OrderFlow`, as the chart installs it.
pub const DEFINITION: &str = include_str!("../../charts/orderflow-operator/files/definition.yaml");

/// The rules of the chart's two Roles, by the name of the Role.
const RULES: [(&str, &str); 2] = [
    ("watched", include_str!("../../charts/orderflow-operator/files/watched-rules.yaml")),
    ("own", include_str!("../../charts/orderflow-operator/files/own-rules.yaml")),
];

const LIVE_DEADLINE: Duration = Duration::from_secs(30);

/// The longest a command may take; `release` waits for a Lease.
const COMMAND_DEADLINE: Duration = Duration::from_secs(90);

/// A running `orderflow-operator run`.
#[derive(Debug)]
pub struct Operator {
    process: Process,
}

impl Operator {
    /// Starts an operator that logs below `folder` as `name`, and waits until it is live.
    pub async fn start(folder: &Path, name: &str, kubeconfig: &Path, environment: Environment) -> Result<Self> {
        let operator =
            Self { process: Process::start(launch(folder, name, kubeconfig, environment)?.argument("run"))? };
        operator.wait_until_up().await?;
        Ok(operator)
    }

    /// Returns the address of `/livez`, `/readyz` and `/metrics`.
    pub fn admin_url(&self) -> Result<String> {
        product::address(&self.process, "admin")
    }
}

/// Runs a command of the operator to its end. Returns whether it succeeded, and what it printed.
pub async fn command(
    folder: &Path,
    name: &str,
    kubeconfig: &Path,
    environment: Environment,
    command: &str,
) -> Result<(bool, String)> {
    let process = Process::start(launch(folder, name, kubeconfig, environment)?.argument(command))?;
    let status = process.wait_for_exit(COMMAND_DEADLINE).await.context("run orderflow-operator")?;
    Ok((status.success(), process.log_since_start()))
}

/// Installs the definition, and waits until the API server serves it.
pub async fn install_definition(client: &Client) -> Result<()> {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/orderflows.orderflow.dev";
    apply(client, path, DEFINITION).await?;
    eventually("the definition to be served", PATIENCE, async || {
        client.list_api_group_resources("orderflow.dev/v1alpha1").await.map(drop)
    })
    .await
}

/// Creates the operator's ServiceAccount in `namespace` with the chart's Roles, and returns its kubeconfig.
pub async fn create_account(kubernetes: &Kubernetes, client: &Client, namespace: &str) -> Result<PathBuf> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    create(&accounts, json!({ "metadata": { "name": ACCOUNT } })).await?;
    for (name, rules) in RULES {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles/{name}");
        let kind = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role";
        apply(client, &path, &format!("{kind}\nmetadata:\n  name: {name}\nrules:\n{rules}")).await?;
        let binding = json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace }],
        });
        create::<RoleBinding>(&Api::namespaced(client.clone(), namespace), binding).await?;
    }
    let request: TokenRequest = serde_json::from_value(json!({ "spec": { "audiences": [] } }))?;
    let token = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?;
    kubernetes.kubeconfig_with_token(namespace, &token.status.context("the API server returned no token")?.token)
}

/// Creates an object that is written as JSON.
pub async fn create<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize,
{
    let object: K = serde_json::from_value(object).context("parse an object")?;
    api.create(&PostParams::default(), &object).await.context("create an object")
}

/// Returns the `OrderFlow` resources of a namespace, without a type of their own: the testbed imports no product crate.
pub fn orderflows(client: Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("orderflow.dev", "v1alpha1", "OrderFlow");
    Api::namespaced_with(client, namespace, &ApiResource::from_gvk_with_plural(&kind, "orderflows"))
}

/// Applies an object that is written as YAML.
async fn apply(client: &Client, path: &str, yaml: &str) -> Result<()> {
    let request = hyper::Request::patch(format!("{path}?fieldManager=testbed&force=true"))
        .header("content-type", "application/apply-patch+yaml")
        .body(yaml.as_bytes().to_vec())
        .context("build a request")?;
    client.request_text(request).await.with_context(|| format!("apply {path}")).map(drop)
}

fn launch(folder: &Path, name: &str, kubeconfig: &Path, environment: Environment) -> Result<Launch> {
    let launch = Launch::new(name, tools::product_binary("orderflow-operator")?, folder::log(folder, name)?);
    let defaults = [
        ("HOST", "127.0.0.1"),
        ("ADMIN_PORT", "0"),
        ("LOG_FORMAT", "json"),
        ("MALLOC_ARENA_MAX", "2"),
        // The testbed's services listen on loopback only.
        ("ALLOW_LOOPBACK_BACKENDS", "true"),
    ];
    let launch = defaults.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value));
    let launch = launch.env("KUBECONFIG", kubeconfig).env("POD_NAME", name);
    Ok(environment.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value)))
}

impl Service for Operator {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "answer /livez", LIVE_DEADLINE, || async {
            product::probe(&self.admin_url()?, "/livez").await
        }))
    }
}
