//! The kubelet, which runs the node's pods.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::{containerd, dns, write};
use crate::{
    folder,
    kubernetes::address::{NODE, NODE_ADDRESS},
    process::Launch,
};

pub(super) struct Settings<'a> {
    pub(super) files: &'a Path,
    pub(super) kubeconfig: &'a Path,
    /// The authority that signs the certificates of the kubelet's clients.
    pub(super) authority: &'a Path,
    pub(super) cgroup: &'a str,
}

pub(super) fn launch(launch: Launch, settings: &Settings<'_>) -> Result<Launch> {
    let files = settings.files.join("kubelet");
    folder::create(&files)?;
    // Pods use the cluster's DNS only; the machine's is in another network.
    let resolv_conf = write(files.join("resolv.conf"), "")?;
    let configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": settings.authority },
        },
        "authorization": { "mode": "Webhook" },
        "containerRuntimeEndpoint": format!("unix://{}", containerd::socket(settings.files).display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": settings.cgroup,
        "failCgroupV1": false,
        "failSwapOn": false,
        // The disk is the machine's own, and pods are not responsible for its usage.
        "evictionHard": { "memory.available": "1Mi" },
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": dns::DOMAIN,
        "resolvConf": resolv_conf,
        "podLogsDir": settings.files.join("pod-logs"),
    });
    let configuration = write(files.join("configuration.json"), format!("{configuration:#}"))?;
    let file = |flag: &str, file: &Path| format!("--{flag}={}", file.display());
    Ok(launch
        .argument(file("config", &configuration))
        .argument(file("kubeconfig", settings.kubeconfig))
        .argument(file("root-dir", &files.join("root")))
        .argument(file("cert-dir", &files.join("certificates")))
        .argument(format!("--hostname-override={NODE}"))
        .argument(format!("--node-ip={NODE_ADDRESS}")))
}
