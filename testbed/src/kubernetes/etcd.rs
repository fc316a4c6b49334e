//! etcd: the storage of the API server.

use std::path::Path;

use anyhow::Result;

use crate::{port, process::Launch};

/// Adds the flags of a single member; the API server connects to `client_port`.
pub(super) fn launch(launch: Launch, files: &Path, client_port: u16) -> Result<Launch> {
    let client = format!("http://127.0.0.1:{client_port}");
    // It has no peers, but must listen for them.
    let peer = format!("http://127.0.0.1:{}", port::free()?);
    Ok(launch
        .argument("--name=testbed")
        .argument(format!("--data-dir={}", files.join("etcd").display()))
        .argument(format!("--listen-client-urls={client}"))
        .argument(format!("--advertise-client-urls={client}"))
        .argument(format!("--listen-peer-urls={peer}"))
        .argument(format!("--initial-advertise-peer-urls={peer}"))
        .argument(format!("--initial-cluster=testbed={peer}"))
        // Writes survive the death of the process, which is all that a test causes; only a power cut loses them.
        .argument("--unsafe-no-fsync")
        .argument("--log-level=warn"))
}
