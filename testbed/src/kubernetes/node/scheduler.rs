//! The scheduler, which assigns pods to the node.

use std::path::Path;

use crate::process::Launch;

pub(super) fn launch(launch: Launch, kubeconfig: &Path) -> Launch {
    launch
        .argument(format!("--kubeconfig={}", kubeconfig.display()))
        // It is the only scheduler, and nothing reads its health or metrics.
        .arguments(["--leader-elect=false", "--secure-port=0"])
}
