//! Support of the operator's tests: a namespace of its own on the shared API server for each test, Secrets, databases,
//! topics and a bucket of its own, and an operator with the permissions of its chart.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{self as core, Namespace, Secret, ServiceAccount},
    events::v1::Event,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use orderflow_testbed::{
    Kubernetes, Operator, Stack, Store, eventually, folder, http,
    kubernetes::FakeKubelet,
    operator::{self, ACCOUNT, create, create_account, install_definition},
    product::Environment,
    wait::PATIENCE,
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// The name of the resource in each namespace.
pub const NAME: &str = "main";

/// The name of a second resource beside it.
pub const SECOND: &str = "second";

/// The namespace of one test, and the services behind its OrderFlow.
pub struct World {
    pub kubernetes: &'static Kubernetes,
    /// The client of the test, with all rights; never the operator's.
    pub client: Client,
    pub namespace: String,
    pub stack: Stack,
    /// The kubeconfig of the operator.
    pub kubeconfig: PathBuf,
    dsns: [String; 2],
    tag: String,
    audit: Mutex<Audit>,
}

/// The part of the audit log that was read.
#[derive(Default)]
struct Audit {
    /// The bytes that were read.
    read: u64,
    requests: Vec<String>,
}

impl World {
    /// Creates a world on the services that this test process shares, which must not be killed or frozen.
    pub async fn new() -> Result<Self> {
        Self::on(kubernetes().await?, Stack::shared().await?).await
    }

    /// Creates a world with an operator that has created `main`, and pods that run: see [`World::kubelet`].
    pub async fn ready() -> Result<(Self, Operator, FakeKubelet)> {
        let world = Self::new().await?;
        let operator = world.operator().await?;
        let kubelet = world.kubelet();
        world.create(world.orderflow()).await?;
        world.wait_for("Ready", "True", "Available").await?;
        Ok((world, operator, kubelet))
    }

    /// Creates a world on services of its own, which may be killed and frozen.
    pub async fn with_own_services() -> Result<Self> {
        Self::on(kubernetes().await?, Stack::builder().own().start().await?).await
    }

    /// Creates a world with an S3 that takes any credentials.
    pub async fn with_localstack() -> Result<Self> {
        Self::on(kubernetes().await?, Stack::builder().store(Store::Localstack).start().await?).await
    }

    /// Creates a world on a control plane and a stack that the test chose.
    pub async fn on(kubernetes: &'static Kubernetes, stack: Stack) -> Result<Self> {
        let client = kubernetes.client()?;
        let tag = Uuid::now_v7().simple().to_string().split_off(24);
        let namespace = format!("test-{tag}");
        create::<Namespace>(&Api::all(client.clone()), json!({ "metadata": { "name": namespace } })).await?;
        let kubeconfig = create_account(kubernetes, &client, &namespace).await?;
        let database = format!("operator_{tag}");
        let dsns =
            [stack.postgres(1).create_database(&database).await?, stack.postgres(2).create_database(&database).await?];
        let world = Self { kubernetes, client, namespace, stack, kubeconfig, dsns, tag, audit: Mutex::default() };
        world.put_secret("postgres-shard1", &[("dsn", world.dsn(1))]).await?;
        world.put_secret("postgres-shard2", &[("dsn", world.dsn(2))]).await?;
        world.put_s3_credentials().await?;
        Ok(world)
    }

    /// Stores the credentials that its S3 takes.
    pub async fn put_s3_credentials(&self) -> Result<()> {
        let s3 = self.stack.object_store();
        let (id, secret) = (s3.access_key_id(), s3.secret_access_key());
        self.put_secret("s3-credentials", &[("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)]).await
    }

    pub fn dsn(&self, shard: usize) -> &str {
        &self.dsns[shard - 1]
    }

    pub fn topic(&self) -> String {
        format!("operator-{}", self.tag)
    }

    pub fn bucket(&self) -> String {
        format!("operator-{}", self.tag)
    }

    /// Returns the OrderFlow `main` of this test, as its user writes it.
    pub fn orderflow(&self) -> Value {
        let services = self.stack.services();
        json!({
            "apiVersion": "orderflow.dev/v1alpha1",
            "kind": "OrderFlow",
            "metadata": { "name": NAME },
            "spec": {
                "shards": [
                    { "name": "shard1", "users": "A-M", "dsnSecretRef": { "name": "postgres-shard1", "key": "dsn" } },
                    { "name": "shard2", "users": "N-Z", "dsnSecretRef": { "name": "postgres-shard2", "key": "dsn" } },
                ],
                "bucket": {
                    "name": self.bucket(),
                    "endpoint": self.stack.object_store().endpoint(),
                    "credentialsSecretRef": { "name": "s3-credentials" },
                },
                "topic": { "name": self.topic(), "bootstrapServers": services.kafka.bootstrap(), "partitions": 6 },
                "producer": { "replicas": 2 },
                "consumer": { "replicas": 2 },
            },
        })
    }

    /// Returns `main` with changes (a JSON merge patch).
    pub fn orderflow_with(&self, changes: &Value) -> Value {
        let mut orderflow = self.orderflow();
        merge(&mut orderflow, changes);
        orderflow
    }

    /// Returns a second OrderFlow, with the same credentials of S3 and everything else its own.
    pub async fn second(&self) -> Result<Value> {
        let other = |name: &str| format!("{name}-{SECOND}");
        let mut second = self.orderflow_with(&json!({
            "metadata": { "name": SECOND },
            "spec": { "bucket": { "name": other(&self.bucket()) }, "topic": { "name": other(&self.topic()) } },
        }));
        for shard in [1, 2] {
            let (secret, database) = (format!("{SECOND}-shard{shard}"), other(&self.tag));
            let dsn = self.stack.postgres(shard).create_database(&database).await?;
            self.put_secret(&secret, &[("dsn", &dsn)]).await?;
            second["spec"]["shards"][shard - 1]["dsnSecretRef"]["name"] = json!(secret);
        }
        Ok(second)
    }

    /// Starts the operator. It probes healthy servers once an hour, so a test that waits for less waits for an event.
    pub async fn operator(&self) -> Result<Operator> {
        self.operator_with(&[]).await
    }

    /// Starts the operator with further settings.
    pub async fn operator_with(&self, environment: &[(&str, &str)]) -> Result<Operator> {
        let name = format!("operator-{}-{}", self.tag, &Uuid::now_v7().simple().to_string()[28..]);
        let environment = self.operator_environment().into_iter().chain(pairs(environment)).collect();
        Operator::start(folder::for_test_process()?, &name, &self.kubeconfig, environment).await
    }

    pub fn operator_environment(&self) -> Environment {
        pairs(&[("POD_NAMESPACE", &self.namespace), ("PROBE_SECONDS", "3600"), ("LEASE_SECONDS", "15")])
    }

    // ---- The resource ----

    pub fn orderflows(&self) -> Api<DynamicObject> {
        operator::orderflows(self.client.clone(), &self.namespace)
    }

    pub async fn create(&self, orderflow: Value) -> Result<()> {
        let object: DynamicObject = serde_json::from_value(orderflow)?;
        self.orderflows().create(&PostParams::default(), &object).await.context("create the OrderFlow")?;
        Ok(())
    }

    /// Applies a JSON merge patch to `main`.
    pub async fn patch(&self, changes: Value) -> Result<()> {
        self.patch_named(NAME, changes).await
    }

    pub async fn patch_named(&self, name: &str, changes: Value) -> Result<()> {
        let patch = Patch::Merge(changes);
        self.orderflows().patch(name, &PatchParams::default(), &patch).await.context("patch the OrderFlow")?;
        Ok(())
    }

    pub async fn status(&self, name: &str) -> Result<Value> {
        Ok(self.orderflows().get(name).await.context("get the OrderFlow")?.data["status"].clone())
    }

    /// Returns one of the conditions of `main`.
    pub async fn condition(&self, kind: &str) -> Result<Value> {
        self.condition_of(NAME, kind).await
    }

    pub async fn condition_of(&self, name: &str, kind: &str) -> Result<Value> {
        let status = self.status(name).await?;
        let conditions = status["conditions"].as_array().context("no conditions yet")?;
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        found.cloned().with_context(|| format!("no condition {kind} in {status}"))
    }

    /// Waits until the condition of `main` has this status and reason, and returns it.
    pub async fn wait_for(&self, kind: &str, status: &str, reason: &str) -> Result<Value> {
        self.wait_for_named(NAME, kind, status, reason).await
    }

    pub async fn wait_for_named(&self, name: &str, kind: &str, status: &str, reason: &str) -> Result<Value> {
        eventually(&format!("{name}: {kind} {status} {reason}"), PATIENCE, async || {
            let condition = self.condition_of(name, kind).await?;
            if condition["status"] == status && condition["reason"] == reason {
                return Ok(condition);
            }
            bail!("{}", self.status(name).await?)
        })
        .await
    }

    /// Waits until the resource no longer exists.
    pub async fn is_gone(&self, name: &str) -> Result<()> {
        eventually(&format!("{name} to be gone"), PATIENCE, async || {
            let found = self.orderflows().get_opt(name).await?;
            ensure!(found.is_none(), "{}", serde_json::to_string(&found)?);
            Ok(())
        })
        .await
    }

    // ---- Other objects ----

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates or replaces a Secret.
    pub async fn put_secret(&self, name: &str, values: &[(&str, &str)]) -> Result<()> {
        let values: BTreeMap<&str, &str> = values.iter().copied().collect();
        let secret =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": values });
        let parameters = PatchParams::apply("test").force();
        self.api::<Secret>().patch(name, &parameters, &Patch::Apply(secret)).await.context("put a Secret")?;
        Ok(())
    }

    /// Returns the API of any kind of child, as JSON.
    pub fn objects(&self, kind: &str) -> Api<DynamicObject> {
        let resource = match kind {
            "Deployment" => ApiResource::erase::<Deployment>(&()),
            "HorizontalPodAutoscaler" => ApiResource::erase::<HorizontalPodAutoscaler>(&()),
            "NetworkPolicy" => ApiResource::erase::<NetworkPolicy>(&()),
            "PodDisruptionBudget" => ApiResource::erase::<PodDisruptionBudget>(&()),
            "Service" => ApiResource::erase::<core::Service>(&()),
            "ServiceAccount" => ApiResource::erase::<ServiceAccount>(&()),
            other => panic!("{other} is not a kind of child"),
        };
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    pub async fn deployment(&self, component: &str) -> Result<Deployment> {
        Ok(self.api::<Deployment>().get(&format!("{NAME}-{component}")).await?)
    }

    /// Waits until `accept` holds for the Deployment.
    pub async fn deployment_that(
        &self,
        component: &str,
        what: &str,
        accept: impl Fn(&Deployment) -> bool,
    ) -> Result<Deployment> {
        self.deployment_within(PATIENCE, component, what, accept).await
    }

    pub async fn deployment_within(
        &self,
        patience: Duration,
        component: &str,
        what: &str,
        accept: impl Fn(&Deployment) -> bool,
    ) -> Result<Deployment> {
        eventually(&format!("a Deployment {component} {what}"), patience, async || {
            let deployment = self.deployment(component).await?;
            ensure!(accept(&deployment), "{}", serde_json::to_string(&deployment)?);
            Ok(deployment)
        })
        .await
    }

    /// Waits until each of the two Deployments exists.
    pub async fn deployments_exist(&self) -> Result<()> {
        for component in ["producer", "consumer"] {
            self.deployment_that(component, "to exist", |_| true).await?;
        }
        Ok(())
    }

    /// Returns the Warnings and other Events of the resource: type, reason, note.
    pub async fn events(&self) -> Result<Vec<(String, String, String)>> {
        let events = self.api::<Event>().list(&ListParams::default()).await?;
        let of_ours = |event: &Event| {
            event.regarding.as_ref().is_some_and(|regarding| regarding.kind.as_deref() == Some("OrderFlow"))
        };
        Ok(events
            .into_iter()
            .filter(of_ours)
            .map(|event| {
                (event.type_.unwrap_or_default(), event.reason.unwrap_or_default(), event.note.unwrap_or_default())
            })
            .collect())
    }

    /// Marks every pod of this namespace as ready, because no node runs.
    pub fn kubelet(&self) -> FakeKubelet {
        FakeKubelet::start(self.api())
    }

    // ---- Settled ----

    /// Makes the operator reconcile `main`, by an annotation, and waits until a whole reconcile has followed this call.
    pub async fn force_reconcile(&self, operator: &Operator) -> Result<()> {
        self.reconcile_named(NAME, operator).await
    }

    /// Makes the operator reconcile another resource than `main`, while no other resource is reconciled.
    pub async fn reconcile_named(&self, name: &str, operator: &Operator) -> Result<()> {
        // The first reconcile that ends may have begun before.
        for _ in 0..2 {
            let before = reconciles(operator).await?;
            let annotation = json!({ "metadata": { "annotations": { "test/reconcile": Uuid::now_v7().to_string() } } });
            self.patch_named(name, annotation).await?;
            eventually("another reconcile", PATIENCE, async || {
                let now = reconciles(operator).await?;
                ensure!(now > before, "{now} reconciles");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until the operator writes nothing more: a forced reconcile writes nothing.
    pub async fn settled(&self, operator: &Operator) -> Result<()> {
        eventually("the operator to write nothing more", PATIENCE, async || {
            let before = self.writes()?.len();
            self.force_reconcile(operator).await?;
            let writes = self.writes()?;
            ensure!(writes.len() == before, "{:?}", &writes[before..]);
            Ok(())
        })
        .await
    }

    /// Returns the operator's writes, except to Leases: verb and object, from the API server's audit log.
    pub fn writes(&self) -> Result<Vec<String>> {
        let requests = self.requests()?;
        Ok(requests
            .into_iter()
            .filter(|request| {
                !request.starts_with("get") && !request.starts_with("list") && !request.starts_with("watch")
            })
            .filter(|request| !request.contains(" leases/"))
            .collect())
    }

    /// Returns the operator's writes except to the resource's status and to Events.
    pub fn writes_to_children(&self) -> Result<Vec<String>> {
        let mut writes = self.writes()?;
        writes.retain(|write| !write.contains(" orderflows/") && !write.contains(" events/"));
        Ok(writes)
    }

    /// Returns every answered request of the operator, in order: `patch services/main-producer 200`.
    pub fn requests(&self) -> Result<Vec<String>> {
        let user = format!("system:serviceaccount:{}:{ACCOUNT}", self.namespace);
        let mut audit = self.audit.lock().unwrap_or_else(PoisonError::into_inner);
        let mut log = File::open(self.kubernetes.audit_log()).context("open the audit log")?;
        // It contains the requests of all tests, so each part is read once.
        log.seek(SeekFrom::Start(audit.read))?;
        let mut new = String::new();
        log.read_to_string(&mut new).context("read the audit log")?;
        // An incomplete line is read next time.
        new.truncate(new.rfind('\n').map_or(0, |end| end + 1));
        audit.read += new.len() as u64;
        let answered = new
            .lines()
            .filter(|line| line.contains(&user))
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["stage"] == "ResponseComplete" && line["user"]["username"] == user.as_str());
        audit.requests.extend(answered.map(|line| {
            let object = &line["objectRef"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
            format!(
                "{} {}/{}{subresource} {}",
                text(&line["verb"]),
                text(&object["resource"]),
                text(&object["name"]),
                line["responseStatus"]["code"]
            )
        }));
        Ok(audit.requests.clone())
    }
}

/// Returns the shared control plane, with the definition that the chart installs.
pub async fn kubernetes() -> Result<&'static Kubernetes> {
    static SHARED: OnceCell<Kubernetes> = OnceCell::const_new();
    SHARED
        .get_or_try_init(async || {
            let kubernetes = Kubernetes::start(folder::for_test_process()?, "kubernetes").await?;
            install_definition(&kubernetes.client()?).await?;
            Ok(kubernetes)
        })
        .await
}

/// Returns how many reconciles of a resource the operator has finished.
pub async fn reconciles(operator: &Operator) -> Result<u64> {
    let metrics = metrics(operator).await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("orderflow_operator_reconciles_total "));
    Ok(line.context("no count of reconciles")?.parse()?)
}

pub async fn metrics(operator: &Operator) -> Result<String> {
    Ok(http::client().get(format!("{}/metrics", operator.admin_url()?)).send().await?.text().await?)
}

/// Applies a JSON merge patch (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                if value.is_null() {
                    target.remove(name);
                } else {
                    merge(target.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn pairs(environment: &[(&str, &str)]) -> Environment {
    environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
