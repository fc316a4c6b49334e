//! The scheduler.

use std::path::Path;

use crate::process::Launch;

pub(super) fn launch(launch: Launch, kubeconfig: &Path) -> Launch {
    launch
        .argument(format!("--kubeconfig={}", kubeconfig.display()))
        // It decides alone, and nobody asks it for its health or metrics.
        .arguments(["--leader-elect=false", "--secure-port=0"])
}
