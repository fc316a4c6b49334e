//! kube-proxy: translates the addresses of Services into those of pods.

use std::path::Path;

use super::network::PODS;
use crate::{
    kubernetes::address::{NODE, NODE_ADDRESS},
    process::Launch,
};

pub(super) fn launch(launch: Launch, kubeconfig: &Path) -> Launch {
    launch
        .argument(format!("--kubeconfig={}", kubeconfig.display()))
        .argument(format!("--hostname-override={NODE}"))
        .argument(format!("--cluster-cidr={PODS}"))
        .argument(format!("--nodeport-addresses={NODE_ADDRESS}/32"))
        .arguments(FLAGS)
}

const FLAGS: [&str; 5] = [
    "--proxy-mode=nftables",
    // The kernel's connection tables belong to the machine; their size must not change.
    "--conntrack-max-per-core=0",
    "--conntrack-tcp-timeout-established=0",
    "--conntrack-tcp-timeout-close-wait=0",
    "--metrics-bind-address=127.0.0.1:10249",
];
