//! Every setting of the operator: a flag, an environment variable, a default and a line of doc each.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use orderflow_service::{admin, secret::Secrets, telemetry};

use crate::{pipeline::Images, reconcile::backends::Backends};

/// Makes and keeps a whole order pipeline from one OrderFlow resource.
///
/// The cluster is that of the kubeconfig (KUBECONFIG, ~/.kube/config) or, in a pod, the one it runs in.
#[derive(Clone, Debug, Parser)]
#[command(name = "orderflow-operator", version, max_term_width = 120)]
pub struct Settings {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Watch OrderFlow resources and make what they say
    Run(Box<Run>),
    /// Print the definition of the OrderFlow resource, as YAML
    Crd,
    /// Look whether the operator can work: definition, permissions, leader; exits with 1 if not
    Check(Cluster),
    /// Let go of all resources, before the operator goes for good: take the Lease, then remove their finalizers
    Release(Release),
}

/// It has none of its own: a pipeline's are in the Secrets that its spec names.
impl Secrets for Settings {}

/// Where the operator works, and where it keeps its own things.
#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(next_help_heading = "Cluster")]
pub struct Cluster {
    /// Namespace whose resources are watched; absent: the operator's own
    #[arg(long, env = "WATCH_NAMESPACE", conflicts_with = "all_namespaces")]
    pub watch_namespace: Option<String>,

    /// Watch all namespaces; needs a ClusterRole
    #[arg(long, env = "ALL_NAMESPACES", default_value_t = false)]
    pub all_namespaces: bool,

    /// Namespace of the operator's Lease and of its key; absent: that of the pod or of the kubeconfig
    #[arg(long, env = "POD_NAMESPACE")]
    pub own_namespace: Option<String>,

    /// Name of the Lease that elects one leader among the operator's processes
    #[arg(long, env = "LEASE_NAME", default_value = "orderflow-operator")]
    pub lease_name: String,
}

#[derive(Args, Clone, Debug)]
pub struct Run {
    #[command(flatten)]
    pub cluster: Cluster,

    /// Name of this process among those that want the Lease; absent: <HOSTNAME>-<PID>
    #[arg(long, env = "POD_NAME", help_heading = "Cluster")]
    pub identity: Option<String>,

    /// A leader that was silent for so long has lost the Lease, in seconds
    #[arg(long, env = "LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=3600), help_heading = "Cluster")]
    pub lease_seconds: u16,

    /// Image of the producers of resources that name none
    #[arg(long, env = "PRODUCER_IMAGE", default_value = concat!("orderflow-producer:", env!("CARGO_PKG_VERSION")), help_heading = "Images")]
    pub producer_image: String,

    /// Image of the consumers of resources that name none
    #[arg(long, env = "CONSUMER_IMAGE", default_value = concat!("orderflow-consumer:", env!("CARGO_PKG_VERSION")), help_heading = "Images")]
    pub consumer_image: String,

    /// How often databases, bucket and topics of a resource that is well are looked at again, in seconds, ± 10 %
    #[arg(long, env = "PROBE_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86400), help_heading = "Reconciling")]
    pub probe_seconds: u32,

    /// Longest time that a deleted resource is kept for what cannot be removed, in seconds
    #[arg(long, env = "CLEANUP_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86400), help_heading = "Reconciling")]
    pub cleanup_seconds: u32,

    /// Buckets that the operator reaches with its own AWS identity if their resource names no credentials, NAME[,NAME…]; `*`
    /// stands for any characters; absent: none
    #[arg(long, env = "BUCKET_PATTERN", value_name = "NAME", value_delimiter = ',', help_heading = "Reconciling")]
    pub bucket_pattern: Vec<String>,

    /// Resources that are reconciled at the same time
    #[arg(long, env = "CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Reconciling")]
    pub concurrency: u16,

    /// Connect to databases, brokers and S3 on loopback, too: for an operator on the machine where they are
    #[arg(long, env = "ALLOW_LOOPBACK_BACKENDS", default_value_t = false, help_heading = "Reconciling")]
    pub allow_loopback_backends: bool,

    #[command(flatten)]
    pub admin: admin::Settings,

    #[command(flatten)]
    pub telemetry: telemetry::Settings,
}

#[derive(Args, Clone, Debug)]
pub struct Release {
    #[command(flatten)]
    pub cluster: Cluster,

    /// How long deletions that are under way may take to end first, in seconds
    #[arg(long, env = "WAIT_SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u16).range(0..=3600), help_heading = "Releasing")]
    pub wait_seconds: u16,
}

/// Which resources are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespace(String),
    All,
}

impl Cluster {
    /// `default` is the namespace of the pod or of the kubeconfig.
    pub fn own_namespace(&self, default: &str) -> String {
        self.own_namespace.clone().unwrap_or_else(|| default.to_owned())
    }

    pub fn scope(&self, default: &str) -> Scope {
        match &self.watch_namespace {
            _ if self.all_namespaces => Scope::All,
            Some(namespace) => Scope::Namespace(namespace.clone()),
            None => Scope::Namespace(self.own_namespace(default)),
        }
    }
}

impl Run {
    /// What is logged unless somebody says otherwise: the client's own word for each watch that ends, as all do after some
    /// minutes, is no warning, and what is one we say ourselves, with its cause.
    pub fn telemetry(&self) -> telemetry::Settings {
        let mut settings = self.telemetry.clone();
        if settings.log == "info" {
            settings.log.push_str(",kube_client=off,kube_runtime=error");
        }
        settings
    }

    pub fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(this_process)
    }

    pub fn images(&self) -> Images {
        Images { producer: self.producer_image.clone(), consumer: self.consumer_image.clone() }
    }

    pub fn backends(&self, cluster: &kube::Config) -> Backends {
        let url = &cluster.cluster_url;
        let port = url.port_u16().unwrap_or(443);
        Backends {
            allow_loopback: self.allow_loopback_backends,
            api_server: url.host().map(|host| (host.trim_matches(['[', ']']).to_ascii_lowercase(), port)),
        }
    }

    pub fn lease_duration(&self) -> Duration {
        Duration::from_secs(self.lease_seconds.into())
    }

    pub fn probe_interval(&self) -> Duration {
        Duration::from_secs(self.probe_seconds.into())
    }

    pub fn cleanup_deadline(&self) -> Duration {
        Duration::from_secs(self.cleanup_seconds.into())
    }
}

/// A name that no other process has.
pub fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_settings_do_not_contradict_themselves() {
        Settings::command().debug_assert();
    }

    #[test]
    fn one_namespace_is_watched_unless_all_are() {
        let scope = |arguments: &[&str]| {
            let arguments = ["orderflow-operator", "check"].iter().chain(arguments);
            match Settings::parse_from(arguments).command {
                Command::Check(cluster) => cluster.scope("shop"),
                _ => unreachable!("the command is check"),
            }
        };
        assert_eq!(scope(&[]), Scope::Namespace("shop".to_owned()));
        assert_eq!(scope(&["--watch-namespace", "other"]), Scope::Namespace("other".to_owned()));
        assert_eq!(scope(&["--all-namespaces"]), Scope::All);
    }
}
