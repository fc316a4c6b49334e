//! The operator's settings: each has a flag, an environment variable, a default and a help text.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use orderflow_service::{admin, secret::Secrets, telemetry};

use crate::{pipeline::Images, reconcile::backends::Backends};

/// Creates and maintains a whole order pipeline from one OrderFlow resource.
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
    /// Watch OrderFlow resources and reconcile them
    Run(Box<Run>),
    /// Print the definition of the OrderFlow resource, as YAML
    Crd,
    /// Check that the operator can work: definition, permissions, leader. Exits with 1 if it cannot
    Check(Cluster),
    /// Remove the finalizers of all resources, before the operator is removed for good. Takes the Lease first
    Release(Release),
}

/// The operator has no secrets of its own: a pipeline's are in the Secrets that its spec names.
impl Secrets for Settings {}

/// The namespaces of the resources and of the operator's own objects.
#[derive(Args, Clone, Debug)]
#[group(skip)]
#[command(next_help_heading = "Cluster")]
pub struct Cluster {
    /// Namespace whose resources are watched. Default: the operator's own
    #[arg(long, env = "WATCH_NAMESPACE", conflicts_with = "all_namespaces")]
    pub watch_namespace: Option<String>,

    /// Watch all namespaces. Requires a ClusterRole
    #[arg(long, env = "ALL_NAMESPACES", default_value_t = false)]
    pub all_namespaces: bool,

    /// Namespace of the operator's Lease and key. Default: the namespace of the pod or of the kubeconfig
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

    /// Name of this process as a holder of the Lease. Default: <HOSTNAME>-<PID>
    #[arg(long, env = "POD_NAME", help_heading = "Cluster")]
    pub identity: Option<String>,

    /// Duration of the Lease, in seconds. A leader that does not renew it for that long loses it
    #[arg(long, env = "LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=3600), help_heading = "Cluster")]
    pub lease_seconds: u16,

    /// Image of producers whose resource names none
    #[arg(long, env = "PRODUCER_IMAGE", default_value = concat!("orderflow-producer:", env!("CARGO_PKG_VERSION")), help_heading = "Images")]
    pub producer_image: String,

    /// Image of consumers whose resource names none
    #[arg(long, env = "CONSUMER_IMAGE", default_value = concat!("orderflow-consumer:", env!("CARGO_PKG_VERSION")), help_heading = "Images")]
    pub consumer_image: String,

    /// Interval of the probes of databases, bucket and topics, in seconds, ± 10 %
    #[arg(long, env = "PROBE_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86400), help_heading = "Reconciling")]
    pub probe_seconds: u32,

    /// Longest time that a deleted resource is kept while its data cannot be removed, in seconds; at least 60 s (or this
    /// time, if shorter) after the first attempt
    #[arg(long, env = "CLEANUP_SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86400), help_heading = "Reconciling")]
    pub cleanup_seconds: u32,

    /// Buckets for which the operator uses its own AWS identity if their resource names no credentials: NAME[,NAME…],
    /// where `*` stands for any characters. Default: none
    #[arg(long, env = "BUCKET_PATTERN", value_name = "NAME", value_delimiter = ',', help_heading = "Reconciling")]
    pub bucket_pattern: Vec<String>,

    /// Number of resources that are reconciled concurrently
    #[arg(long, env = "CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Reconciling")]
    pub concurrency: u16,

    /// Allow databases, brokers and S3 on loopback, for an operator on the same machine
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

    /// Longest wait for deletions that are in progress, in seconds
    #[arg(long, env = "WAIT_SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u16).range(0..=3600), help_heading = "Releasing")]
    pub wait_seconds: u16,
}

/// The namespaces whose resources are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespace(String),
    All,
}

impl Cluster {
    /// Returns the operator's own namespace. `default` is that of the pod or of the kubeconfig.
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
    /// Returns the telemetry settings. The default log filter omits the client's warning for each watch that ends, as
    /// all do after some minutes; a real failure is logged by the operator with its cause.
    pub fn telemetry(&self) -> telemetry::Settings {
        let mut settings = self.telemetry.clone();
        if settings.log == "info" {
            settings.log.push_str(",kube_client=off,kube_runtime=error");
        }
        settings
    }

    pub fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(process_name)
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

/// Returns a name that no other process has.
pub fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_settings_are_consistent() {
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
