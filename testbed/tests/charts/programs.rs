//! The real operator as the chart starts it: with the arguments, the variables and the ServiceAccount of the pods that
//! a release has created, and with no other permission.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use orderflow_testbed::{
    Launch, Operator, Process, Stack, eventually, folder, helm::Release, product::Environment, tools, wait::PATIENCE,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    files::{OPERATOR, example, objects, pod_template},
    site::Site,
};

/// The process that a node would start for the first container of a pod.
struct Command {
    arguments: Vec<String>,
    environment: Environment,
    /// The kubeconfig with a token of the pod's account.
    kubeconfig: PathBuf,
}

impl Command {
    async fn new(site: &Site, template: &Value) -> Result<Self> {
        let spec = &template["spec"];
        let container = &spec["containers"][0];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let arguments = list(&container["args"]).iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
        let mut environment = Environment::new();
        for variable in list(&container["env"]) {
            let name = variable["name"].as_str().context("a variable without a name")?;
            let field = variable.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str);
            let value = match (variable["value"].as_str(), field) {
                (Some(value), None) => value.to_owned(),
                (None, Some("metadata.namespace")) => site.namespace.clone(),
                (None, Some("metadata.name")) => "as-a-pod".to_owned(),
                _ => bail!("{variable}"),
            };
            environment.push((name.to_owned(), value));
        }
        let account = spec["serviceAccountName"].as_str().context("a pod without an account")?;
        ensure!(spec["automountServiceAccountToken"] == true, "the pod gets no token: {spec}");
        Ok(Self { arguments, environment, kubeconfig: kubeconfig(site, account).await? })
    }

    /// Runs it to its end, as a pod that is not restarted. Returns whether it succeeded, and what it printed.
    async fn run(self) -> Result<(bool, String)> {
        let folder = folder::for_test_process()?;
        let name = format!("{}-{}", self.arguments[0], Uuid::now_v7());
        let launch = Launch::new(&name, tools::product_binary("orderflow-operator")?, folder::log(folder, &name)?)
            .arguments(self.arguments)
            .env("KUBECONFIG", self.kubeconfig);
        let launch = self.environment.into_iter().fold(launch, |launch, (name, value)| launch.env(name, value));
        let process = Process::start(launch)?;
        let status = process.wait_for_exit(PATIENCE).await?;
        Ok((status.success(), process.log_since_start()))
    }
}

async fn kubeconfig(site: &Site, account: &str) -> Result<PathBuf> {
    let request: TokenRequest = serde_json::from_value(json!({ "spec": { "audiences": [] } }))?;
    let accounts: Api<ServiceAccount> = site.api();
    let token = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    let token = token.status.context("no token was answered")?.token;
    site.kubernetes.kubeconfig_with_token(&format!("{}-{account}", site.namespace), &token)
}

/// Starts the operator of a release, as its Deployment specifies.
pub async fn operator(site: &Site, release: &Release) -> Result<Operator> {
    let deployment = objects(&release.manifest)?.into_iter().find(|object| object["kind"] == "Deployment");
    let live = site.live(&deployment.context("no Deployment")?).await?;
    let command = Command::new(site, &pod_template(&live).context("no template")?).await?;
    ensure!(command.arguments == ["run"], "{:?}", command.arguments);
    let name = format!("operator-{}", site.namespace);
    Operator::start(folder::for_test_process()?, &name, &command.kubeconfig, command.environment).await
}

/// Runs the release's hook for an event, as a node would.
async fn run_hook(site: &Site, release: &Release, event: &str) -> Result<(bool, String)> {
    let hook = release.hooks.iter().find(|hook| hook.events.iter().any(|found| found == event));
    let hook = objects(&hook.with_context(|| format!("no hook {event}"))?.manifest)?.remove(0);
    Command::new(site, &pod_template(&hook).context("a hook without a pod")?).await?.run().await
}

/// Creates the OrderFlow of an example on the testbed's services, with databases, topics and a bucket of its own, and
/// the Secrets that it names.
pub async fn on_the_testbed(site: &Site, stack: &Stack, file: &str) -> Result<Value> {
    let mut orderflow =
        example(file)?.into_iter().find(|object| object["kind"] == "OrderFlow").context("no OrderFlow")?;
    let services = stack.services();
    for shard in [1, 2] {
        let dsn = stack.postgres(shard).create_database(&site.namespace.replace('-', "_")).await?;
        put_secret(site, &format!("postgres-shard{shard}"), &[("dsn", &dsn)]).await?;
        let shard = &mut orderflow["spec"]["shards"][shard - 1];
        shard.as_object_mut().context("no shard")?.remove("caSecretRef");
    }
    put_secret(
        site,
        "s3-credentials",
        &[
            ("AWS_ACCESS_KEY_ID", stack.object_store().access_key_id()),
            ("AWS_SECRET_ACCESS_KEY", stack.object_store().secret_access_key()),
        ],
    )
    .await?;
    let bucket = &mut orderflow["spec"]["bucket"];
    bucket["name"] = json!(site.namespace);
    bucket["endpoint"] = json!(stack.object_store().endpoint());
    bucket["credentialsSecretRef"] = json!({ "name": "s3-credentials" });
    let topic = orderflow["spec"]["topic"].as_object_mut().context("no topic")?;
    topic.insert("name".to_owned(), json!(site.namespace));
    topic.insert("bootstrapServers".to_owned(), json!(services.kafka.bootstrap()));
    for of_another_kafka in ["tls", "sasl", "replicationFactor"] {
        topic.remove(of_another_kafka);
    }
    Ok(orderflow)
}

pub async fn put_secret(site: &Site, name: &str, values: &[(&str, &str)]) -> Result<()> {
    let values: std::collections::BTreeMap<&str, &str> = values.iter().copied().collect();
    site.apply(&json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": values }))
        .await
}

/// Waits for a condition of the live object of this manifest.
pub async fn wait_for(site: &Site, orderflow: &Value, kind: &str, status: &str) -> Result<Value> {
    eventually(&format!("{kind} {status} in {}", site.namespace), PATIENCE, async || {
        let live = site.live(orderflow).await?;
        let conditions = live["status"]["conditions"].as_array().context("no conditions yet")?;
        let found = conditions.iter().find(|condition| condition["type"] == kind).context("no such condition")?;
        ensure!(found["status"] == status, "{}", live["status"]);
        Ok(live)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_releases_in_two_namespaces_work_independently() -> Result<()> {
    let stack = Stack::shared().await?;
    let sites = [Site::new().await?, Site::new().await?];
    let mut started = Vec::new();
    for site in &sites {
        let release = site.install_operator(json!({})).await?;
        started.push((operator(site, &release).await?, site.kubelet(), release));
    }
    for (site, (_, _, release)) in sites.iter().zip(&started) {
        let orderflow = on_the_testbed(site, &stack, "orderflow.yaml").await?;
        site.apply(&orderflow).await?;
        wait_for(site, &orderflow, "Ready", "True").await?;
        // The command of `helm test`.
        let (ok, output) = run_hook(site, release, "test").await?;
        ensure!(ok && !output.contains("FAILED"), "{output}");
    }

    // From the audit log, which has each request.
    for (site, other) in [(&sites[0], &sites[1]), (&sites[1], &sites[0])] {
        let user = format!("system:serviceaccount:{}:{OPERATOR}", site.namespace);
        let log = std::fs::read_to_string(site.kubernetes.audit_log())?;
        let requests: Vec<Value> = log
            .lines()
            .filter(|line| line.contains(&user))
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &Value| line["user"]["username"] == user.as_str())
            .collect();
        ensure!(!requests.is_empty(), "the operator of {} asked for nothing", site.namespace);
        let strange: Vec<&Value> =
            requests.iter().filter(|request| request["objectRef"]["namespace"] == other.namespace.as_str()).collect();
        ensure!(strange.is_empty(), "{strange:?}");
        // Nothing was tried that the chart does not allow.
        let refused: Vec<&Value> = requests.iter().filter(|request| request["responseStatus"]["code"] == 403).collect();
        ensure!(refused.is_empty(), "{refused:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_may_watch_a_namespace_other_than_its_own() -> Result<()> {
    let stack = Stack::shared().await?;
    let (own, watched) = (Site::new().await?, Site::new().await?);
    let release = own.install_operator(json!({ "watchNamespace": watched.namespace })).await?;
    let _operator = operator(&own, &release).await?;
    let _kubelet = watched.kubelet();
    let orderflow = on_the_testbed(&watched, &stack, "orderflow.yaml").await?;
    watched.apply(&orderflow).await?;
    wait_for(&watched, &orderflow, "Ready", "True").await?;
    let (ok, output) = run_hook(&own, &release, "test").await?;
    ensure!(ok, "{output}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_of_a_release_without_permissions_names_them() -> Result<()> {
    let site = Site::new().await?;
    let release = site.install_operator(json!({ "rbac": { "create": false } })).await?;
    let (ok, output) = run_hook(&site, &release, "test").await?;
    ensure!(!ok && output.contains("may create deployments.apps"), "{output}");
    Ok(())
}

/// The hook removes the finalizers before the operator, or they would block deletions for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_removes_the_finalizers() -> Result<()> {
    let site = Site::new().await?;
    // The hook waits until a leader must have noticed.
    let values = json!({ "leaseSeconds": 3, "releaseFinalizers": { "waitSeconds": 5 } });
    let release = site.install_operator(values).await?;
    let _operator = operator(&site, &release).await?;
    let mut orderflow = example("orderflow.yaml")?.remove(0);
    orderflow["spec"]["deletionPolicy"] = json!("Delete");
    site.apply(&orderflow).await?;
    eventually("a finalizer", PATIENCE, async || {
        let live = site.live(&orderflow).await?;
        ensure!(live["metadata"]["finalizers"] == json!(["orderflow.dev/cleanup"]), "{live}");
        Ok(())
    })
    .await?;

    let (removed, ()) = tokio::try_join!(site.helm.uninstall(OPERATOR, &["--timeout=60s"]), play_the_node(&site))?;
    ensure!(removed.contains("uninstalled"), "{removed}");
    let live = site.live(&orderflow).await?;
    ensure!(live["metadata"].get("finalizers").is_none(), "{live}");
    ensure!(live["metadata"].get("deletionTimestamp").is_none(), "it was deleted: {live}");
    let left = site.everything().await?;
    ensure!(!left.iter().any(|title| title.starts_with("Job/")), "{left:?}");
    Ok(())
}

/// Runs the pod of the hook when it exists, and sets the status with which it ended.
async fn play_the_node(site: &Site) -> Result<()> {
    let pods: Api<Pod> = site.api();
    let of_the_hook = ListParams::default().labels("app.kubernetes.io/component=release-finalizers");
    let pod = eventually("the pod of the hook", PATIENCE, async || {
        pods.list(&of_the_hook).await?.items.pop().context("none yet")
    })
    .await?;
    let (ok, output) = Command::new(
        site,
        &pod_template(&json!({ "kind": "Pod", "metadata": pod.metadata, "spec": pod.spec })).context("no pod")?,
    )
    .await?
    .run()
    .await?;
    ensure!(ok, "{output}");
    let ended = json!({ "status": { "phase": "Succeeded" } });
    pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(ended)).await?;
    Ok(())
}
