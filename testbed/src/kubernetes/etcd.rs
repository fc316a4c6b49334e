//! etcd: where the API server keeps everything.

use std::path::Path;

use anyhow::Result;

use crate::{port, process::Launch};

/// Adds what one member that is alone needs; `client_port` is where the API server finds it.
pub(super) fn launch(launch: Launch, files: &Path, client_port: u16) -> Result<Launch> {
    let client = format!("http://127.0.0.1:{client_port}");
    // It has no peers, but cannot be told not to listen for them.
    let peer = format!("http://127.0.0.1:{}", port::free()?);
    Ok(launch
        .argument("--name=testbed")
        .argument(format!("--data-dir={}", files.join("etcd").display()))
        .argument(format!("--listen-client-urls={client}"))
        .argument(format!("--advertise-client-urls={client}"))
        .argument(format!("--listen-peer-urls={peer}"))
        .argument(format!("--initial-advertise-peer-urls={peer}"))
        .argument(format!("--initial-cluster=testbed={peer}"))
        // What was written survives the death of the process, which is all a test does; only a power cut loses it.
        .argument("--unsafe-no-fsync")
        .argument("--log-level=warn"))
}
