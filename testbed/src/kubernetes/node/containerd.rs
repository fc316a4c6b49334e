//! containerd and runc, with the plugins that give each pod an address.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::{START_DEADLINE, network::PODS, run, write};
use crate::{
    folder,
    process::{Launch, Process},
    service::wait_until_answered,
    tools,
};

pub(super) fn socket(files: &Path) -> PathBuf {
    files.join("containerd.sock")
}

pub(super) fn launch(folder: &Path, files: &Path) -> Result<Launch> {
    let network = files.join("cni");
    folder::create(&network)?;
    write(network.join("10-pods.conflist"), format!("{:#}", plugins(files)))?;
    let settings = write(files.join("containerd.toml"), settings(files, &network))?;
    let launch = Launch::new("containerd", tools::node_program("containerd")?, folder::log(folder, "node-containerd")?);
    Ok(launch.argument("--config").argument(settings))
}

pub(super) async fn wait_until_up(containerd: &Process, files: &Path) -> Result<()> {
    let (ctr, socket) = (tools::node_program("ctr")?, socket(files).display().to_string());
    wait_until_answered(containerd, "answer", START_DEADLINE, || async {
        run(&ctr, &["--address", &socket, "version"]).await
    })
    .await
}

/// Imports all images of an OCI layout, under the names that it gives them.
pub(super) async fn import(files: &Path, layout: &Path) -> Result<()> {
    let archive = files.join("images.tar");
    let (archive_name, layout) = (archive.display().to_string(), layout.display().to_string());
    run(&tools::node_program("tar")?, &["-cf", &archive_name, "-C", &layout, "."]).await?;
    let (ctr, socket) = (tools::node_program("ctr")?, socket(files).display().to_string());
    run(&ctr, &["--address", &socket, "--namespace", "k8s.io", "images", "import", "--no-unpack", &archive_name])
        .await?;
    std::fs::remove_file(&archive).context("remove the images' archive")
}

/// Returns the network plugins. Each pod has a link of its own to the node: over a bridge, the responses of a pod would
/// bypass the node's translation of a Service's address.
fn plugins(files: &Path) -> serde_json::Value {
    let addresses = json!({
        "type": "host-local",
        "dataDir": files.join("addresses"),
        "ranges": [[{ "subnet": PODS }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            { "type": "ptp", "ipam": addresses },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

fn settings(files: &Path, network: &Path) -> String {
    format!(
        r#"version = 2
root = "{files}/containerd"
state = "{files}/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/orderflow/pause:local"
# Without the capability to lower a process's chance to be killed, containerd must not set it.
restrict_oom_score_adj = true
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{network}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#,
        files = files.display(),
        socket = socket(files).display(),
        network = network.display(),
    )
}
