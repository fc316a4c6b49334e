//! The operator with many resources on a real API server: what they cost it while they are made and once nothing happens, and
//! how soon it acts on a change.

use std::{
    fmt::Debug,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    authentication::v1::TokenRequest,
    core::v1::{Namespace, Secret, ServiceAccount},
    rbac::v1::RoleBinding,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use orderflow_testbed::{
    Kafka, Kubernetes, Operator, Postgres, Service, Versitygw, eventually, folder, http, product::Environment,
    versitygw,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    backing::{PATIENCE, metric},
    report::Report,
    series::short,
    usage,
};

const RESOURCES: usize = 200;
const CHANGES: usize = 100;
const NAMESPACE: &str = "bench";
/// The operator's ServiceAccount.
const ACCOUNT: &str = "orderflow-operator";
const S3_SECRET: &str = "s3-credentials";

/// `PROBE_SECONDS`: the default, and more than all of this takes.
const EACH_MINUTE: u32 = 60;
const EACH_HOUR: u32 = 3600;

/// Each resource is probed once within it.
const QUIET: Duration = Duration::from_secs(60);
/// The operator is done when it has written nothing for so long.
const SETTLED: Duration = Duration::from_secs(3);
/// Longest wait until all resources are ready.
const MAKING: Duration = Duration::from_secs(900);
/// Between two looks at the operator's metrics, each of which costs it some CPU, too.
const TICK: Duration = Duration::from_millis(250);
/// Between two looks for a change: short against the time that it takes.
const GLANCE: Duration = Duration::from_millis(5);

/// Starts all that it needs below `folder`, which keeps the logs.
pub async fn measure(folder: &Path, report: &mut Report) -> Result<()> {
    folder::create(folder)?;
    let measured = with_services(folder, report).await;
    let _ = std::fs::remove_dir_all(folder.join("data"));
    measured
}

async fn with_services(folder: &Path, report: &mut Report) -> Result<()> {
    report.section(
        "The operator with 200 resources",
        "In one namespace of a real API server, with etcd and controllers on the same machine. Each resource has a database of its own, gets \
         a bucket and topics of its own, and becomes ready; it has no pods (`replicas: 0`), since there is no node. A look after a change \
         also asks database, bucket and brokers. CPU and memory are the operator's alone; requests are those that the API server's audit \
         log has of it. `after`, CPU and requests count from when the first resource was made, or the operator was started.",
    );
    let world = World::start(folder).await?;
    let mut audit = Audit { log: world.kubernetes.audit_log().to_owned(), read: 0 };
    let (mut work, mut rest) = (Vec::new(), Vec::new());

    let operator = world.operator(EACH_MINUTE).await?;
    rest.push(at_rest("no resource", &operator, &mut audit).await?);
    let cpu = usage::cpu(operator.pid())?;
    let mut meter = Meter::new(&operator, &mut audit, Instant::now(), cpu);
    let looked_at = meter.until("made: each was looked at once", |looked_at, _| looked_at == RESOURCES);
    let ((), looked_at) = tokio::try_join!(world.make_resources(), looked_at)?;
    work.push(looked_at);
    work.push(meter.until("made: all are ready", |_, ready| ready == RESOURCES).await?);
    world.all_are_observed().await?;
    rest.push(at_rest("200 resources, each probed once a minute (the default)", &operator, &mut audit).await?);

    let (mut acted, mut told) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let [acted_after, told_after] = world.change(number).await?;
        acted.push(acted_after);
        told.push(told_after);
    }

    operator.stop().await?;
    audit.take()?;
    let began = Instant::now();
    let operator = world.operator(EACH_HOUR).await?;
    let mut meter = Meter::new(&operator, &mut audit, began, 0.0);
    work.push(meter.until("operator started again: all are ready", |_, ready| ready == RESOURCES).await?);
    rest.push(at_rest("200 resources, none probed meanwhile", &operator, &mut audit).await?);

    report.head(&["", "after", "CPU, s", "memory at most, MiB", "requests"]);
    for row in work {
        report.row(row);
    }
    report.head(&[
        "left alone for 60 s",
        "CPU, % of a core (goal: 0.5)",
        "memory, MiB (goal: 25)",
        "requests/s",
        "of them for its Lease",
    ]);
    for row in rest {
        report.row(row);
    }
    report.head(&["a resource's image is changed, 100 times, one after the other", "p50", "p99"]);
    for (what, mut times) in [("its Deployment has it", acted), ("its status says that it was looked at", told)] {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        let [p50, p99] = [0.5, 0.99].map(|share| format!("{} ms", short(at(share).as_secs_f64() * 1e3)));
        report.row([what.to_owned(), p50, p99]);
    }
    Ok(())
}

/// Everything is left alone: a row with what the operator then still needs.
async fn at_rest(what: &str, operator: &Operator, audit: &mut Audit) -> Result<[String; 5]> {
    settled(audit).await?;
    audit.take()?;
    let before = usage::cpu(operator.pid())?;
    sleep(QUIET).await;
    let share = (usage::cpu(operator.pid())? - before) / QUIET.as_secs_f64() * 100.0;
    let requests = audit.take()?;
    let for_lease = requests.iter().filter(|request| request.is_for_lease()).count();
    let per_second = |count: usize| short(count as f64 / QUIET.as_secs_f64());
    let memory = short(usage::resident(operator.pid())?);
    Ok([what.to_owned(), short(share), memory, per_second(requests.len()), per_second(for_lease)])
}

/// Waits until the operator has nothing left to write.
async fn settled(audit: &mut Audit) -> Result<()> {
    let began = Instant::now();
    loop {
        audit.take()?;
        sleep(SETTLED).await;
        let writes = audit.take()?.iter().filter(|request| request.is_write()).count();
        if writes == 0 {
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "the operator still writes: {writes} times within {SETTLED:?}");
    }
}

/// What a step costs the operator.
struct Meter<'a> {
    operator: &'a Operator,
    /// Whose earlier requests were taken before.
    audit: &'a mut Audit,
    began: Instant,
    /// Seconds that it had used before.
    cpu: f64,
    /// The most that was seen, in MiB.
    memory: f64,
    requests: usize,
}

impl<'a> Meter<'a> {
    fn new(operator: &'a Operator, audit: &'a mut Audit, began: Instant, cpu: f64) -> Self {
        Self { operator, audit, began, cpu, memory: 0.0, requests: 0 }
    }

    /// Waits until enough resources were looked at, and are ready: a row with what it took, from the begin on.
    async fn until(&mut self, what: &str, enough: impl Fn(usize, usize) -> bool) -> Result<[String; 5]> {
        loop {
            let (looked_at, ready) = states(self.operator).await?;
            self.memory = self.memory.max(usage::resident(self.operator.pid())?);
            if enough(looked_at, ready) {
                break;
            }
            ensure!(self.began.elapsed() < MAKING, "{looked_at} of {RESOURCES} were looked at, {ready} are ready");
            sleep(TICK).await;
        }
        let after = format!("{} s", short(self.began.elapsed().as_secs_f64()));
        let cpu = short(usage::cpu(self.operator.pid())? - self.cpu);
        self.requests += self.audit.take()?.len();
        Ok([what.to_owned(), after, cpu, short(self.memory), self.requests.to_string()])
    }
}

/// Of how many resources the operator says whether they are ready, as it does after each look, and how many are.
async fn states(operator: &Operator) -> Result<(usize, usize)> {
    let metrics = http::client().get(format!("{}/metrics", operator.admin_url()?)).send().await?.text().await?;
    let states: Vec<&str> = metrics.lines().filter(|line| line.starts_with("orderflow_operator_ready{")).collect();
    Ok((states.len(), states.iter().filter(|state| state.ends_with(" 1")).count()))
}

/// The control plane, and what the resources stand on.
struct World {
    kubernetes: Kubernetes,
    postgres: Postgres,
    kafka: Kafka,
    s3: Versitygw,
    /// With all rights: never the operator's.
    client: Client,
    /// Of the operator.
    kubeconfig: PathBuf,
    folder: PathBuf,
}

impl World {
    async fn start(folder: &Path) -> Result<Self> {
        let (kubernetes, postgres, kafka, s3) = tokio::try_join!(
            Kubernetes::start(folder, "kubernetes"),
            Postgres::start(folder, "postgres"),
            Kafka::start(folder, "kafka"),
            Versitygw::start(folder, "s3"),
        )?;
        let client = kubernetes.client()?;
        install_definition(&client).await?;
        create::<Namespace>(&Api::all(client.clone()), json!({ "metadata": { "name": NAMESPACE } })).await?;
        let kubeconfig = make_account(&kubernetes, &client).await?;
        let world = Self { kubernetes, postgres, kafka, s3, client, kubeconfig, folder: folder.to_owned() };
        world.make_secrets().await?;
        Ok(world)
    }

    /// A database for each resource, and the Secrets that they name.
    async fn make_secrets(&self) -> Result<()> {
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
    async fn operator(&self, probe_seconds: u32) -> Result<Operator> {
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
        let kind = GroupVersionKind::gvk("orderflow.dev", "v1alpha1", "OrderFlow");
        let kind = ApiResource::from_gvk_with_plural(&kind, "orderflows");
        Api::namespaced_with(self.client.clone(), NAMESPACE, &kind)
    }

    async fn make_resources(&self) -> Result<()> {
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

    /// What the operator says of itself is also what the resources say.
    async fn all_are_observed(&self) -> Result<()> {
        let resources = self.resources().list(&ListParams::default()).await.context("list the resources")?;
        let observed = resources.iter().filter(|resource| is_observed(resource)).count();
        ensure!(observed == RESOURCES, "the status of {observed} resources is that of their generation");
        Ok(())
    }

    /// Changes the image of a resource's producers: how long it takes until their Deployment has it, and until the status is
    /// that of the new generation.
    async fn change(&self, number: usize) -> Result<[Duration; 2]> {
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
        let told = began.elapsed();
        // What follows from it is over before the next change.
        until("the resource to be ready again", async || {
            let resource = resources.get(&name).await.context("read a resource")?;
            anyhow::Ok(is_observed(&resource) && is_ready(&resource))
        })
        .await?;
        Ok([acted, told])
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

/// Looks again and again, more often than `eventually` does.
async fn until(what: &str, is_so: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so().await? {
        ensure!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        sleep(GLANCE).await;
    }
    Ok(())
}

/// The API server's log of requests, which is complete.
struct Audit {
    log: PathBuf,
    /// Bytes.
    read: u64,
}

/// One that the operator made, and that was answered.
struct Request {
    verb: String,
    /// The kind of object, in the plural.
    of: String,
}

impl Audit {
    /// What the operator has asked for since the last call. A watch counts when it ends.
    fn take(&mut self) -> Result<Vec<Request>> {
        let user = format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}");
        let mut log = File::open(&self.log).context("open the audit log")?;
        log.seek(SeekFrom::Start(self.read)).context("find where the audit log was read to")?;
        let mut new = String::new();
        log.read_to_string(&mut new).context("read the audit log")?;
        // A line that is being written is read next time.
        new.truncate(new.rfind('\n').map_or(0, |end| end + 1));
        self.read += new.len() as u64;
        let lines = new.lines().filter(|line| line.contains(&user));
        let requests = lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["stage"] == "ResponseComplete" && line["user"]["username"] == user.as_str());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(requests
            .map(|line| Request { verb: text(&line["verb"]), of: text(&line["objectRef"]["resource"]) })
            .collect())
    }
}

impl Request {
    /// Its Lease aside.
    fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch") && !self.is_for_lease()
    }

    fn is_for_lease(&self) -> bool {
        self.of == "leases"
    }
}

async fn install_definition(client: &Client) -> Result<()> {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/orderflows.orderflow.dev";
    apply(client, path, include_str!("../../charts/orderflow-operator/files/definition.yaml")).await?;
    eventually("the definition to be served", PATIENCE, async || {
        client.list_api_group_resources("orderflow.dev/v1alpha1").await.map(drop)
    })
    .await
}

/// The ServiceAccount with the roles of the chart; its kubeconfig.
async fn make_account(kubernetes: &Kubernetes, client: &Client) -> Result<PathBuf> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    create(&accounts, json!({ "metadata": { "name": ACCOUNT } })).await?;
    for (name, rules) in [
        ("watched", include_str!("../../charts/orderflow-operator/files/watched-rules.yaml")),
        ("own", include_str!("../../charts/orderflow-operator/files/own-rules.yaml")),
    ] {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles/{name}");
        let kind = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role";
        let role = format!("{kind}\nmetadata:\n  name: {name}\nrules:\n{rules}");
        apply(client, &path, &role).await?;
        let binding = json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE }],
        });
        create::<RoleBinding>(&Api::namespaced(client.clone(), NAMESPACE), binding).await?;
    }
    let request: TokenRequest = serde_json::from_value(json!({ "spec": { "audiences": [] } }))?;
    let token = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?;
    kubernetes.kubeconfig_with_token(NAMESPACE, &token.status.context("no token was answered")?.token)
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    let object: K = serde_json::from_value(object).context("read an object")?;
    api.create(&PostParams::default(), &object).await.context("create an object").map(drop)
}

/// An object as its file has it, in YAML.
async fn apply(client: &Client, path: &str, yaml: &str) -> Result<()> {
    let request = hyper::Request::patch(format!("{path}?fieldManager=bench&force=true"))
        .header("content-type", "application/apply-patch+yaml")
        .body(yaml.as_bytes().to_vec())
        .context("make a request")?;
    client.request_text(request).await.with_context(|| format!("apply {path}")).map(drop)
}
