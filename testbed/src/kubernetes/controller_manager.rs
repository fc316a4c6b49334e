//! The controller manager: all of Kubernetes' default controllers, among them Deployments, ReplicaSets, garbage
//! collection, namespaces and service accounts.

use std::path::Path;

use super::certificates::Certificates;
use crate::process::Launch;

pub(super) fn launch(launch: Launch, certificates: &Certificates, kubeconfig: &Path) -> Launch {
    launch
        .argument(format!("--kubeconfig={}", kubeconfig.display()))
        .argument(format!("--service-account-private-key-file={}", certificates.service_account_key.display()))
        .argument(format!("--root-ca-file={}", certificates.authority.display()))
        .arguments(FLAGS)
}

/// The flags that all controller managers here share.
const FLAGS: [&str; 5] = [
    // Each controller has the rights of its own service account, so RBAC applies to it as in any cluster.
    "--use-service-account-credentials=true",
    // No other could lead, and after kill -9 a lease would have to expire first.
    "--leader-elect=false",
    // Nothing reads its health or metrics.
    "--secure-port=0",
    // The defaults (20 and 30 a second) slow down tests that run at the same time.
    "--kube-api-qps=200",
    "--kube-api-burst=400",
];
