//! The spec of an OrderFlow.

use std::collections::BTreeMap;

use k8s_openapi::{api::networking::v1::NetworkPolicyPeer, apimachinery::pkg::api::resource::Quantity};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{OrderFlowStatus, rules};

/// An order pipeline: the shards that store its orders, the bucket for its receipts, the topic for its events, and the
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
    doc = "An order pipeline: its shards, bucket, topic, producers and consumers.",
    validation = Rule::new(rules::NAME).message("metadata.name: must have 1 to 50 characters a-z, 0-9 and '-', start with a letter and end with a letter or digit"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Shards", type_ = "string", json_path = ".status.shardsReady"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(rules::CONSUMERS_HAVE_PARTITIONS).message("consumer.replicas: must not exceed topic.partitions, because a consumer without a partition does nothing (default: 2 replicas)"))]
pub struct OrderFlowSpec {
    /// The databases that store the orders, in order. Users outside every range belong to the last one. Only the
    /// references to Secrets can change after creation.
    #[schemars(length(min = 1, max = 26))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new(rules::UNIQUE_NAMES).message("shards: names must be unique"),
        validation = Rule::new(rules::NO_OVERLAP).message("shards: ranges of users must not overlap"),
        validation = Rule::new(rules::SAME_SHARDS).message("shards: number, order, names and users cannot change after creation, because stored orders do not move")
    )]
    pub shards: Vec<Shard>,

    /// The S3 bucket for receipts.
    pub bucket: Bucket,

    /// The Kafka topic for order events. The topics for notifications, dead letters and progress records are named
    /// after it.
    pub topic: Topic,

    /// The program that serves the REST API, publishes events and writes receipts.
    #[serde(default)]
    pub producer: Producer,

    /// The program that turns events into notifications.
    #[serde(default)]
    pub consumer: Consumer,

    /// The receiver of traces. Default: no traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traces: Option<Traces>,

    /// Peers that may connect to the pods, and peers that the pods may connect to.
    #[serde(default)]
    pub network_policy: NetworkPolicy,

    /// Policy that keeps or removes tables, receipts and topics when the resource is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// A database that stores the orders of a range of users.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(rules::ORDERED).message("users: the first letter must not come after the last"))]
pub struct Shard {
    /// Name of the shard in the API, logs and metrics.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// Range of first letters of its users, such as `A-M`.
    #[schemars(length(max = 3), regex(pattern = r"^[A-Z]-[A-Z]$"))]
    pub users: String,

    /// Secret with the DSN, such as `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=require`.
    pub dsn_secret_ref: SecretKey,

    /// Secret with the authorities (PEM) that sign the server's certificate. An `sslmode` weaker than `verify-ca` then
    /// becomes `verify-full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
}

/// A value in a Secret of the same namespace.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// Key in the Secret.
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

/// The bucket for receipts.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bucket {
    /// Name of the bucket. The operator creates it if it does not exist.
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9][-.a-z0-9]*[a-z0-9]$"))]
    pub name: String,

    /// Region of the bucket.
    #[serde(default = "Bucket::default_region")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9][-a-z0-9]*$"))]
    pub region: String,

    /// URL of an S3 server other than AWS, such as `http://localstack:4566`. Default: AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^/?#@\s]+/?$"))]
    pub endpoint: Option<String>,

    /// Secret with `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, for temporary keys, `AWS_SESSION_TOKEN`. Default:
    /// producers and operator each use the default AWS credential chain (for IRSA, see
    /// `producer.serviceAccount.annotations`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretName>,
}

/// The topics and the connection to Kafka.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.name != '.' && self.name != '..'").message("name: must not be '.' or '..'"))]
pub struct Topic {
    /// Name of the topic for events.
    #[schemars(length(min = 1, max = 235), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub name: String,

    /// Addresses of the brokers: `HOST:PORT[,HOST:PORT…]`.
    #[schemars(length(min = 3, max = 1024), regex(pattern = r"^[^\s:,/]+:[0-9]{1,5}(,[^\s:,/]+:[0-9]{1,5})*$"))]
    pub bootstrap_servers: String,

    /// Number of partitions of the events' topic. The notifications' topic has at least as many. Cannot change after
    /// creation, because a user's events must stay in one partition.
    #[serde(default = "Topic::default_partitions")]
    #[schemars(range(min = 1, max = 1000))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("topic.partitions: cannot change after creation, because a user's events must stay in one partition"))]
    pub partitions: i32,

    /// Replication factor of a new topic. Default: the brokers' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32767))]
    pub replication_factor: Option<i32>,

    /// Retention of events, notifications and dead letters in a new topic, in days: at least `30d`. Consumers can stop
    /// for that long without losing an event.
    #[serde(default = "Topic::default_retention")]
    #[schemars(length(max = 5), regex(pattern = r"^[0-9]{2,4}d$"))]
    #[x_kube(validation = Rule::new("int(self.replace('d', '')) >= 30").message("topic.retention: must be at least 30d"))]
    pub retention: String,

    /// Connect to the brokers with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,

    /// Authenticate to the brokers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sasl: Option<Sasl>,
}

/// TLS connections to the brokers.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Secret with the authorities (PEM) that sign the brokers' certificates. Default: the system's authorities.
    /// Strimzi keeps its own in `<cluster>-cluster-ca-cert`, key `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
}

/// Authentication to the brokers.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sasl {
    /// SASL mechanism. `PLAIN` without `tls` sends the password in plain text.
    pub mechanism: SaslMechanism,

    /// User name. Default: key `username` of the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub username: Option<String>,

    /// Secret with the keys `password` and, unless `username` is set here, `username`.
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

/// The producers' pods. Set `replicas` or `autoscaling`, not both. Default: 2 replicas.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.replicas) && has(self.autoscaling))").message("producer: set replicas or autoscaling, not both"), validation = Rule::new(rules::AUTOSCALING_NEEDS_CPU).message("producer.autoscaling: requires resources.requests.cpu, because its target is a share of the request"))]
pub struct Producer {
    /// Number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,

    /// Scales the number of pods by their CPU use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,

    /// Image of the pods. Default: the image of the operator's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Pull policy of the image.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// Requests and limits of the container. Default: the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// The pods' ServiceAccount, which the operator creates.
    #[serde(default)]
    pub service_account: ServiceAccount,
}

/// The consumers' pods.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(rules::SAME_GROUP).message("consumer.groupId: cannot change after creation, because another group starts at the oldest event and notifies every user again"))]
pub struct Consumer {
    /// Number of pods, at most `topic.partitions`. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,

    /// Consumer group of the pods. Default: `<namespace>.<name>`. Cannot change after creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub group_id: Option<String>,

    /// Log the order id and event id of each notification. User, product and total are never logged.
    #[serde(default)]
    pub log_notifications: bool,

    /// Image of the pods. Default: the image of the operator's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Pull policy of the image.
    #[serde(default)]
    pub image_pull_policy: ImagePullPolicy,

    /// Requests and limits of the container. Default: the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// The pods' ServiceAccount, which the operator creates.
    #[serde(default)]
    pub service_account: ServiceAccount,
}

/// The receiver of traces, and which orders are recorded.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traces {
    /// Address of an OTLP receiver over HTTP, without a path, such as `http://otel-collector.monitoring:4318`.
    #[schemars(length(max = 1024), regex(pattern = r"^https?://[^/?#@\s]+/?$"))]
    pub endpoint: String,

    /// Percent of the orders that are recorded. A client that sends a trace context decides itself.
    #[serde(default = "Traces::default_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub sample_percent: i32,

    /// Address of a trace in Jaeger, Tempo or Grafana, with `{trace_id}` in it. The dashboard links to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = r"^https?://\S*\{trace_id\}\S*$"))]
    pub url_template: Option<String>,
}

impl Traces {
    fn default_percent() -> i32 {
        10
    }
}

/// Bounds of the autoscaler.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.min <= self.max").message("autoscaling: min must not exceed max"))]
pub struct Autoscaling {
    /// Minimum number of pods.
    #[schemars(range(min = 1, max = 1000))]
    pub min: i32,

    /// Maximum number of pods.
    #[schemars(range(min = 1, max = 1000))]
    pub max: i32,

    /// Target average CPU use of the pods, in percent of their request.
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

/// Requests and limits of a container.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Requested resources, such as `cpu: 100m` and `memory: 64Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, Quantity>,

    /// Limits of the container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, Quantity>,
}

/// A ServiceAccount that the operator creates.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccount {
    /// Annotations of the ServiceAccount, such as `eks.amazonaws.com/role-arn`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Peers that may connect to the pods, and peers that the pods may connect to. Without peers in `kafka`, `postgres`,
/// `s3` or `traces`, the pods may connect to that port at any address.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicy {
    /// Create NetworkPolicies. They have no effect on a network that does not enforce them.
    #[serde(default = "NetworkPolicy::default_enabled")]
    pub enabled: bool,

    /// Peers that may use the API for clients on port 8080. Default: all pods of the resource's namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub clients: Vec<NetworkPolicyPeer>,

    /// Peers that may use the dashboard and the whole API on port 8081. Default: all pods of the resource's namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub internal: Vec<NetworkPolicyPeer>,

    /// Peers that may read health and metrics on port 9464. Default: all pods of the resource's namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub metrics: Vec<NetworkPolicyPeer>,

    /// Additional name servers, such as a node-local cache. The pods `k8s-app: kube-dns` of `kube-system` are always
    /// allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub dns: Vec<NetworkPolicyPeer>,

    /// Peers of Kafka's brokers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub kafka: Vec<NetworkPolicyPeer>,

    /// Peers of the shards' databases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub postgres: Vec<NetworkPolicyPeer>,

    /// Peers of S3 and, without `bucket.credentialsSecretRef`, of AWS STS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub s3: Vec<NetworkPolicyPeer>,

    /// Peers of the receiver of traces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub traces: Vec<NetworkPolicyPeer>,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// Keep everything outside the cluster.
    #[default]
    Retain,
    /// Remove the tables and receipts, and the bucket, topics and consumer group if OrderFlow created them.
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
            traces: Vec::new(),
        }
    }
}
