//! An OrderFlow after validation: every value parsed, every Secret read. A part that could not be resolved has a
//! [`Problem`] instead. After `reconcile::validate` no step reads the spec again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::{core::v1::ResourceRequirements, networking::v1::NetworkPolicyPeer};
use kube::runtime::reflector::ObjectRef;
use orderflow_core::{ShardIndex, ShardMap, Topics};
use orderflow_provision::{Adopt, topics};
use orderflow_service::{kafka, s3};
use sqlx::postgres::PgConnectOptions;

use crate::{condition::Problem, crd::SecretKey};

/// The resolved part, or the problem with it.
pub type Part<T> = Result<T, Problem>;

/// The identity of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub generation: i64,
}

/// An OrderFlow whose every value was parsed.
pub struct Pipeline {
    pub identity: Identity,
    /// The owner whose databases, bucket and topics may be taken over.
    pub adoption: Adoption,
    pub map: ShardMap,
    pub shards: Vec<Shard>,
    pub bucket: Bucket,
    pub topic: Topic,
    pub producer: Producer,
    pub consumer: Consumer,
    /// The peers of the NetworkPolicies, unless the spec turns policies off.
    pub traces: Option<Traces>,
    pub network_policy: Option<Peers>,
}

/// A shard's database.
pub struct Shard {
    pub index: ShardIndex,
    pub name: String,
    pub dsn: SecretKey,
    pub ca: Option<SecretKey>,
    pub access: Part<ShardAccess>,
}

pub struct ShardAccess {
    pub options: PgConnectOptions,
    /// The values that the pods get, for the config hash.
    pub secret_values: Vec<Vec<u8>>,
}

pub struct Bucket {
    pub name: String,
    pub region: String,
    pub endpoint: Option<String>,
    pub port: u16,
    /// The name of the Secret. Without one, the default AWS chain is used.
    pub credentials: Option<String>,
    /// True if the Secret has a session token.
    pub session_token: bool,
    pub access: Part<BucketAccess>,
}

pub struct BucketAccess {
    pub settings: s3::Settings,
    pub secret_values: Vec<Vec<u8>>,
}

pub struct Topic {
    pub names: Topics,
    pub brokers: String,
    pub ports: BTreeSet<u16>,
    pub partitions: i32,
    pub replication_factor: Option<i32>,
    pub retention: Duration,
    /// The settings of TLS, if it is used.
    pub tls: Option<Tls>,
    pub sasl: Option<Sasl>,
    pub access: Part<TopicAccess>,
}

pub struct TopicAccess {
    pub settings: kafka::Settings,
    pub secret_values: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct Tls {
    /// The authorities. Without them, the system's are used.
    pub ca: Option<SecretKey>,
}

#[derive(Clone, Debug)]
pub struct Sasl {
    /// The mechanism, such as `SCRAM-SHA-512`.
    pub mechanism: &'static str,
    pub username: Username,
    pub password: SecretKey,
}

#[derive(Clone, Debug)]
pub enum Username {
    Given(String),
    In(SecretKey),
}

/// The settings of the pods that both programs have.
#[derive(Clone, Debug)]
pub struct Pods {
    pub image: String,
    pub image_pull_policy: &'static str,
    pub resources: ResourceRequirements,
    pub service_account_annotations: BTreeMap<String, String>,
}

pub struct Producer {
    pub pods: Pods,
    pub scale: Scale,
}

pub struct Consumer {
    pub pods: Pods,
    pub replicas: i32,
    pub group: String,
    pub log_notifications: bool,
}

/// The receiver of traces.
pub struct Traces {
    pub endpoint: String,
    pub port: u16,
    /// The share of the orders that are recorded, from 0 to 1.
    pub ratio: f64,
    pub url_template: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Fixed(i32),
    Automatic { min: i32, max: i32, target_cpu_percent: i32 },
}

/// The peers of the pods' connections. Without `clients`, `internal` or `metrics`, those of the own namespace. `dns`
/// adds to the cluster's name servers. Without `kafka`, `postgres`, `s3` or `traces`, any
/// address.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    pub clients: Vec<NetworkPolicyPeer>,
    pub internal: Vec<NetworkPolicyPeer>,
    pub metrics: Vec<NetworkPolicyPeer>,
    pub dns: Vec<NetworkPolicyPeer>,
    pub kafka: Vec<NetworkPolicyPeer>,
    pub postgres: Vec<NetworkPolicyPeer>,
    pub s3: Vec<NetworkPolicyPeer>,
    pub traces: Vec<NetworkPolicyPeer>,
}

/// The images for resources that name none.
#[derive(Clone, Debug)]
pub struct Images {
    pub producer: String,
    pub consumer: String,
}

/// The adoption that the annotations of a resource request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adoption {
    pub from: Option<String>,
    /// The reason why an annotation has no effect.
    pub unheeded: Option<String>,
    /// True if the resource has the annotation that names no owner.
    pub outdated: bool,
}

/// The warning to resources that still have the old annotation, for one version.
const OUTDATED: &str = "the annotation orderflow.dev/adopt no longer has an effect: remove it, and to take something over name \
                        its owner, orderflow.dev/adopt-from: NAMESPACE/NAME";

impl Identity {
    /// Returns the owner that databases, bucket and topics record: NAMESPACE/NAME.
    pub fn owner(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Returns the key of the child of this name in a store.
    pub fn child<K: kube::Resource<DynamicType = ()>>(&self, name: &str) -> ObjectRef<K> {
        ObjectRef::new(name).within(&self.namespace)
    }
}

impl Pipeline {
    /// Returns the first unresolved part of what the pods need. While there is one, no children are created or changed.
    pub fn unresolved(&self) -> Option<&Problem> {
        let shards = self.shards.iter().filter_map(|shard| shard.access.as_ref().err());
        shards.chain(self.bucket.access.as_ref().err()).chain(self.topic.access.as_ref().err()).next()
    }

    pub fn adopt(&self) -> Adopt<'_> {
        self.adoption.adopt()
    }

    pub fn topics(&self) -> topics::Wanted<'_> {
        topics::Wanted {
            topics: self.topic.names.clone(),
            partitions: self.topic.partitions,
            shards: self.shards.len() as i32,
            replication_factor: self.topic.replication_factor,
            retention: self.topic.retention,
            owner: self.identity.owner(),
            adopt: self.adopt(),
        }
    }
}

impl Adoption {
    pub fn adopt(&self) -> Adopt<'_> {
        Adopt::from(self.from.as_deref())
    }

    /// Returns the reason why nothing is taken over although an annotation requests it.
    pub fn unheeded(&self) -> Option<&str> {
        self.unheeded.as_deref().or(self.outdated())
    }

    /// Returns the warning about the annotation that names no owner.
    pub fn outdated(&self) -> Option<&'static str> {
        self.outdated.then_some(OUTDATED)
    }
}
