//! The node's network: its own address, and the forwarding of pods' traffic.

use anyhow::{Context, Result};

use super::run;
use crate::{kubernetes::address::NODE_ADDRESS, tools};

/// The addresses of pods.
pub(super) const PODS: &str = "10.244.0.0/16";

/// Gives this network namespace, which is empty, the node's address.
pub(super) async fn set_up() -> Result<()> {
    let ip = tools::node_program("ip")?;
    run(&ip, &["link", "set", "lo", "up"]).await?;
    run(&ip, &["address", "replace", &format!("{NODE_ADDRESS}/32"), "dev", "lo"]).await?;
    // All addresses outside of the pods' lead to the node itself. Without any route, a Service's address would be
    // unreachable before kube-proxy could translate it into a pod's.
    run(&ip, &["route", "replace", "local", "10.96.0.0/16", "dev", "lo", "table", "main"]).await?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("enable forwarding of pods' traffic")
}
