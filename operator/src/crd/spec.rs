//! What people write.

use std::collections::BTreeMap;

use k8s_openapi::{api::networking::v1::NetworkPolicyPeer, apimachinery::pkg::api::resource::Quantity};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{OrderFlowStatus, rules};

/// One order pipeline: the shards that store its orders, the bucket of its receipts, the topic of its events, and the
/// producers and consumers that run it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "orderflow.dev",
    version = "v1alpha1",
    kind = "OrderFlow",
    plural = "orderflows",
    shortname = "of",
    namespaced,
    status = "OrderFlowStatus",
    derive = "PartialEq",
    doc = "One order pipeline: its shards, bucket, topic, producers and consumers.",
    validation = Rule::new(rules::NAME).message("metadata.name: must be 1 to 50 of a-z, 0-9 and '-', beginning with a letter and ending with a letter or digit"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Shards", type_ = "string", json_path = ".status.shardsReady"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(rules::CONSUMERS_HAVE_PARTITIONS).message("consumer.replicas: must not be more than topic.partitions, since a consumer without a partition does nothing (2 replicas if absent)"))]
pub struct OrderFlowSpec {
    /// The databases that hold the orders, in order; users that no range names belong to the last one. Fixed after creation,
    /// but for the references to Secrets.
    #[schemars(length(min = 1, max = 26))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new(rules::UNIQUE_NAMES).message("shards: each name may stand only once"),
        validation = Rule::new(rules::NO_OVERLAP).message("shards: two ranges of users must not name the same letter"),
        validation = Rule::new(rules::SAME_SHARDS).message("shards: their number, order, names and users are fixed after creation, because stored orders do not move")
    )]
    pub shards: Vec<Shard>,

    /// The S3 bucket of the receipts.
    pub bucket: Bucket,

    /// The Kafka topic of the order events; notifications, dead letters and progress records have topics named after it.
    pub topic: Topic,

    /// The REST API, which also publishes the events and writes the receipts.
    #[serde(default)]
    pub producer: Producer,

    /// Turns events into notifications.
    #[serde(default)]
    pub consumer: Consumer,

    /// What the pods may be reached by, and reach.
    #[serde(default)]
    pub network_policy: NetworkPolicy,

    /// What becomes of tables, objects and topics when the resource is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// One database.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(rules::ORDERED).message("users: the first letter must not come after the last"))]
pub struct Shard {
    /// Name of the shard, as the API shows it.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// First letters of its users, as in `A-M`.
    #[schemars(length(max = 3), regex(pattern = r"^[A-Z]-[A-Z]$"))]
    pub users: String,

    /// Where its DSN is: `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require`.
    pub dsn_secret_ref: SecretKey,

    /// Where the certificates (PEM) are that may sign its server's; an `sslmode` weaker than `verify-ca` then becomes
    /// `verify-full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
}

/// One value in a Secret of the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// Key of the value in it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A Secret of the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretName {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
}

/// The bucket of the receipts.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bucket {
    /// Name of the bucket; it is created if it is missing.
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9][-.a-z0-9]*[a-z0-9]$"))]
    pub name: String,

    /// Region of the bucket.
    #[serde(default = "Bucket::default_region")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9][-a-z0-9]*$"))]
    pub region: String,

    /// Another S3 than AWS, as in `http://localstack:4566`; absent: AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^/?#@\s]+/?$"))]
    pub endpoint: Option<String>,

    /// The Secret with `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if they are temporary, `AWS_SESSION_TOKEN`. Absent:
    /// the default AWS chain, in the producer and in the operator (IRSA: `producer.serviceAccount.annotations`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretName>,
}

/// The topics, and how to reach Kafka.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.name != '.' && self.name != '..'").message("name: must not be '.' or '..'"))]
pub struct Topic {
    /// Name of the events' topic.
    #[schemars(length(min = 1, max = 235), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub name: String,

    /// Kafka's brokers, `HOST:PORT[,HOST:PORT…]`.
    #[schemars(length(min = 3, max = 1024), regex(pattern = r"^[^\s:,/]+:[0-9]{1,5}(,[^\s:,/]+:[0-9]{1,5})*$"))]
    pub bootstrap_servers: String,

    /// Partitions of the events' topic; at least as many have the notifications. Fixed after creation, because a user's
    /// events must stay in one partition.
    #[serde(default = "Topic::default_partitions")]
    #[schemars(range(min = 1, max = 1000))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("topic.partitions: fixed after creation, because a user's events must stay in one partition"))]
    pub partitions: i32,

    /// Copies of each partition of a new topic; absent: what the brokers are configured for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32767))]
    pub replication_factor: Option<i32>,

    /// How long events, notifications and dead letters of a new topic are kept: days, at least `30d`, as a consumer may stand
    /// still for that long without a loss.
    #[serde(default = "Topic::default_retention")]
    #[schemars(length(max = 5), regex(pattern = r"^[0-9]{2,4}d$"))]
    #[x_kube(validation = Rule::new("int(self.replace('d', '')) >= 30").message("topic.retention: must be at least 30d"))]
    pub retention: String,

    /// Speak TLS to the brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// Log in to the brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,
}

/// TLS to the brokers.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Where the certificates (PEM) are that may sign the brokers'; absent: the system's. Strimzi keeps them in
    /// `<cluster>-cluster-ca-cert`, key `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
}

/// How to log in to the brokers.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sasl {
    /// How to log in. With `PLAIN` and without `tls` the password goes over the network as it is.
    pub mechanism: SaslMechanism,

    /// Name to log in with; absent: what key `username` of the Secret says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub username: Option<String>,

    /// The Secret with `password` and, unless it is given here, `username`.
    pub secret_ref: SecretName,
}

#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SaslMechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// The producers' pods. `replicas` or `autoscaling`, not both; with neither there are 2.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.replicas) && has(self.autoscaling))").message("producer: replicas or autoscaling, not both"), validation = Rule::new(rules::AUTOSCALING_NEEDS_CPU).message("producer.autoscaling: needs resources.requests.cpu, since it works with shares of it"))]
pub struct Producer {
    /// How many pods there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,

    /// Lets the CPU decide how many pods there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,

    /// Image of the pods; absent: the one that belongs to the operator's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// When the image is pulled.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// What the container asks for and may use; absent: the operator's defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// The pods' ServiceAccount, which the operator makes.
    #[serde(default)]
    pub service_account: ServiceAccount,
}

/// The consumers' pods.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(rules::SAME_GROUP).message("consumer.groupId: fixed after creation, because another group begins at the start of the topic and every user would be notified again"))]
pub struct Consumer {
    /// How many pods there are, 2 if absent; not more than `topic.partitions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,

    /// Consumer group that the pods share; absent: `<namespace>.<name>`. Fixed after creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub group_id: Option<String>,

    /// Log the order id and event id of each notification. The user, the product and the total are in no log.
    #[serde(default)]
    pub log_notifications: bool,

    /// Image of the pods; absent: the one that belongs to the operator's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// When the image is pulled.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// What the container asks for and may use; absent: the operator's defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// The pods' ServiceAccount, which the operator makes.
    #[serde(default)]
    pub service_account: ServiceAccount,
}

/// Between how many pods the autoscaler chooses.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.min <= self.max").message("autoscaling: min must not be more than max"))]
pub struct Autoscaling {
    /// Fewest pods.
    #[schemars(range(min = 1, max = 1000))]
    pub min: i32,

    /// Most pods.
    #[schemars(range(min = 1, max = 1000))]
    pub max: i32,

    /// Share of the requested CPU, in percent, that the pods should use on average.
    #[serde(rename = "targetCPUUtilizationPercentage", default = "Autoscaling::default_target")]
    #[schemars(range(min = 1, max = 100))]
    pub target_cpu_utilization_percentage: i32,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// What a container asks for and may use.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the container asks for, as in `cpu: 100m`, `memory: 64Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, Quantity>,

    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, Quantity>,
}

/// A ServiceAccount that the operator makes.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccount {
    /// Annotations of the ServiceAccount, as in `eks.amazonaws.com/role-arn`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What the pods may be reached by, and reach. `kafka`, `postgres` and `s3` without peers: that port at any address.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicy {
    /// Make NetworkPolicies. They need a network that enforces them.
    #[serde(default = "NetworkPolicy::default_enabled")]
    pub enabled: bool,

    /// Who may place and read orders on port 8080; absent: the pods of the resource's own namespace. Peers that are named replace
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub clients: Vec<NetworkPolicyPeer>,

    /// Who may use the dashboard and all of the API on port 8081; absent: the pods of the resource's own namespace. Peers that
    /// are named replace them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub internal: Vec<NetworkPolicyPeer>,

    /// Who may read health and metrics; absent: the pods of the resource's own namespace. Peers that are named replace them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub metrics: Vec<NetworkPolicyPeer>,

    /// Name servers besides the pods `k8s-app: kube-dns` of `kube-system`, such as a node-local cache.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub dns: Vec<NetworkPolicyPeer>,

    /// Where Kafka's brokers are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub kafka: Vec<NetworkPolicyPeer>,

    /// Where the shards' databases are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub postgres: Vec<NetworkPolicyPeer>,

    /// Where S3 is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub s3: Vec<NetworkPolicyPeer>,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// Nothing outside the cluster is touched.
    #[default]
    Retain,
    /// Our tables, receipts, bucket, topics and consumer group are removed.
    Delete,
}

impl Bucket {
    fn default_region() -> String {
        "us-east-1".to_owned()
    }
}

impl Topic {
    fn default_partitions() -> i32 {
        6
    }

    fn default_retention() -> String {
        "30d".to_owned()
    }
}

impl Autoscaling {
    fn default_target() -> i32 {
        70
    }
}

impl NetworkPolicy {
    fn default_enabled() -> bool {
        true
    }
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            clients: Vec::new(),
            internal: Vec::new(),
            metrics: Vec::new(),
            dns: Vec::new(),
            kafka: Vec::new(),
            postgres: Vec::new(),
            s3: Vec::new(),
        }
    }
}
