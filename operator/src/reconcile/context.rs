//! The clients, stores and settings that every reconcile uses.

use std::{sync::Arc, time::Duration};

use aws_sdk_s3::config::SharedHttpClient;
use kube::Client;

use super::{backends::Backends, resource_state::ResourceStates};
use crate::{build::config_hash::Key, cache::Stores, metrics::Metrics, own_buckets::OwnBuckets, pipeline::Images};

pub struct Context {
    pub client: Client,
    /// The HTTP client that the S3 clients of all buckets share.
    pub s3: SharedHttpClient,
    pub stores: Stores,
    pub states: ResourceStates,
    pub metrics: Metrics,
    pub images: Images,
    pub own_buckets: OwnBuckets,
    pub backends: Backends,
    /// The key of the config hashes on the pods.
    pub key: Key,
    /// Name of this process, in its events.
    pub identity: Arc<str>,
    /// Time between two probes of the backends of a resource without problems.
    pub probe_interval: Duration,
    /// Time from the deletion of a resource after which it is let go, even if something could not be removed. The grace
    /// after the first attempt may prolong it.
    pub cleanup_deadline: Duration,
}
