//! The API server: authenticates by certificate and token, authorizes by RBAC, admits by its default plugins (Pod
//! Security is one of them) and writes an audit log.

use std::path::Path;

use anyhow::{Context, Result};

use super::{address::NODE_ADDRESS, certificates::Certificates};
use crate::process::Launch;

/// The clients that can reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Programs on this machine only, when no pods run.
    Loopback,
    /// The node's pods as well, through the Service `kubernetes`.
    Pods,
}

/// The settings in which control planes differ.
pub(super) struct Settings<'a> {
    pub(super) port: u16,
    pub(super) etcd_port: u16,
    pub(super) audit_log: &'a Path,
    pub(super) reach: Reach,
}

pub(super) fn launch(
    launch: Launch,
    files: &Path,
    certificates: &Certificates,
    settings: &Settings<'_>,
) -> Result<Launch> {
    let audit_policy = files.join("audit-policy.yaml");
    std::fs::write(&audit_policy, AUDIT_POLICY).with_context(|| format!("write {}", audit_policy.display()))?;
    let file = |flag: &str, file: &Path| format!("--{flag}={}", file.display());
    let launch = match settings.reach {
        Reach::Loopback => launch.arguments(ALONE),
        Reach::Pods => launch
            .argument("--bind-address=0.0.0.0")
            .argument(format!("--advertise-address={NODE_ADDRESS}"))
            .argument("--kubelet-preferred-address-types=InternalIP"),
    };
    Ok(launch
        .argument(file("kubelet-client-certificate", &certificates.kubelet_client.certificate))
        .argument(file("kubelet-client-key", &certificates.kubelet_client.key))
        .argument(format!("--etcd-servers=http://127.0.0.1:{}", settings.etcd_port))
        .argument(format!("--secure-port={}", settings.port))
        .argument(file("tls-cert-file", &certificates.api_server.certificate))
        .argument(file("tls-private-key-file", &certificates.api_server.key))
        .argument(file("client-ca-file", &certificates.authority))
        .argument(file("service-account-key-file", &certificates.service_account_public_key))
        .argument(file("service-account-signing-key-file", &certificates.service_account_key))
        .argument(file("audit-policy-file", &audit_policy))
        .argument(file("audit-log-path", settings.audit_log))
        .arguments(FLAGS))
}

const ALONE: [&str; 3] = [
    "--bind-address=127.0.0.1",
    // Its own Service gets no endpoint: a loopback address is not a valid one, and no pod would use it.
    "--advertise-address=127.0.0.1",
    "--endpoint-reconciler-type=none",
];

/// The flags that all API servers here share.
const FLAGS: [&str; 9] = [
    "--service-cluster-ip-range=10.96.0.0/16",
    "--service-account-issuer=https://kubernetes.default.svc",
    "--authorization-mode=Node,RBAC",
    // A client that forgets its credentials gets 401 and not the rights of system:anonymous.
    "--anonymous-auth=false",
    // Every distribution sets it. Admission decides whether a pod may be privileged; without this flag the pod would be
    // invalid, and no test could distinguish the two.
    "--allow-privileged=true",
    // On SIGTERM the server ends when the requests in flight are answered. Without this flag it also waits up to a
    // minute for watches that never end.
    "--shutdown-send-retry-after=true",
    "--audit-log-format=json",
    // The line is in the file before the client has its response.
    "--audit-log-mode=blocking",
    // A log that is rotated by size would be in several files.
    "--audit-log-maxsize=10000",
];

/// The audit policy: each request once, when it is answered.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
";
