//! CoreDNS, which resolves the names of Services. It runs beside the pods, on the node's address.

use std::path::Path;

use anyhow::Result;

use super::write;
use crate::{folder, kubernetes::address::NODE_ADDRESS, process::Launch, tools};

pub(super) const DOMAIN: &str = "cluster.local";

pub(super) fn launch(folder: &Path, files: &Path, kubeconfig: &Path) -> Result<Launch> {
    let settings = write(
        files.join("Corefile"),
        format!(
            "{DOMAIN}:53 in-addr.arpa:53 {{\n  bind {NODE_ADDRESS}\n  errors\n  kubernetes {DOMAIN} in-addr.arpa {{\n    \
             kubeconfig {}\n    ttl 5\n  }}\n}}\n",
            kubeconfig.display()
        ),
    )?;
    let launch = Launch::new("coredns", tools::coredns()?, folder::log(folder, "node-coredns")?);
    Ok(launch.argument("-conf").argument(settings))
}
