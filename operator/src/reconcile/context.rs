//! What every reconcile uses: clients, stores, settings.

use std::{sync::Arc, time::Duration};

use aws_sdk_s3::config::SharedHttpClient;
use kube::Client;

use super::{backends::Backends, resource_state::ResourceStates};
use crate::{build::config_hash::Key, cache::Stores, metrics::Metrics, own_buckets::OwnBuckets, pipeline::Images};

pub struct Context {
    pub client: Client,
    /// Shared by the clients of all buckets.
    pub s3: SharedHttpClient,
    pub stores: Stores,
    pub states: ResourceStates,
    pub metrics: Metrics,
    pub images: Images,
    pub own_buckets: OwnBuckets,
    pub backends: Backends,
    /// Keys the config hashes on the pods.
    pub key: Key,
    /// Name of this process, in its events.
    pub identity: Arc<str>,
    /// Time between two probes of the backends of a resource without problems.
    pub probe_interval: Duration,
    /// Time from the deletion of a resource after which it is let go, even if something could not be removed.
    pub cleanup_deadline: Duration,
}
