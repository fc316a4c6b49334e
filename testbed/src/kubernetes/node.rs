//! A node on which pods really run: containerd, kubelet, kube-proxy, a scheduler and CoreDNS, without Docker or
//! registry.
//!
//! It changes the machine's network and mounts, so it only starts in network, mount and process namespaces of its own
//! (`make e2e`), which take all of it with them, however the test ended. Its images come from OCI layouts; nothing is
//! pulled. No network plugin here enforces NetworkPolicies.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1;
use kube::Api;

use super::{
    Kubernetes, START_DEADLINE,
    address::{NODE, NODE_ADDRESS},
    kubeconfig::{Credentials, kubeconfig},
    launch,
};
use crate::{command, folder, process::Process, service::wait_until_answered};

mod containerd;
mod dns;
mod kube_proxy;
mod kubelet;
mod network;
mod scheduler;

/// A running node.
#[derive(Debug)]
pub struct Node {
    // Fields are dropped in this order: each before what it depends on.
    kubelet: Process,
    _kube_proxy: Process,
    _scheduler: Process,
    _dns: Process,
    _containerd: Process,
}

impl Node {
    /// Starts the node of `kubernetes` below `folder` with the images of the OCI layouts in folder `images`, and waits
    /// until it accepts pods. `cgroup` is an existing control group for all pods, such as `/orderflow`.
    pub async fn start(kubernetes: &Kubernetes, folder: &Path, images: &Path, cgroup: &str) -> Result<Self> {
        let files = folder::data(folder, NODE)?;
        folder::create(&files)?;
        let url = format!("https://{NODE_ADDRESS}:{}", kubernetes.port);
        let certificates = &kubernetes.certificates;
        let kubeconfig =
            |name: &str, pair| kubeconfig(&files, name, &url, &certificates.authority, &Credentials::Certificate(pair));
        let launch = |component| launch(folder, NODE, component);

        let containerd = Process::start(containerd::launch(folder, &files)?)?;
        containerd::wait_until_up(&containerd, &files).await?;
        for layout in images.read_dir().with_context(|| format!("read folder {}", images.display()))? {
            let layout = layout.context("read a folder")?.path();
            if layout.is_dir() {
                containerd::import(&files, &layout).await?;
            }
        }

        let dns = Process::start(dns::launch(folder, &files, &kubeconfig("dns", &certificates.admin)?)?)?;
        let kube_proxy = kubeconfig("kube-proxy", &certificates.kube_proxy)?;
        let kube_proxy = Process::start(kube_proxy::launch(launch("kube-proxy")?, &kube_proxy))?;
        let scheduler = kubeconfig("scheduler", &certificates.scheduler)?;
        let scheduler = Process::start(scheduler::launch(launch("kube-scheduler")?, &scheduler))?;
        let settings = kubelet::Settings {
            files: &files,
            kubeconfig: &kubeconfig("kubelet", &certificates.kubelet)?,
            authority: &certificates.authority,
            cgroup,
        };
        let kubelet = Process::start(kubelet::launch(launch("kubelet")?, &settings)?)?;

        let node = Self { kubelet, _kube_proxy: kube_proxy, _scheduler: scheduler, _dns: dns, _containerd: containerd };
        node.wait_until_ready(kubernetes).await?;
        Ok(node)
    }

    async fn wait_until_ready(&self, kubernetes: &Kubernetes) -> Result<()> {
        let nodes: Api<v1::Node> = Api::all(kubernetes.client()?);
        wait_until_answered(&self.kubelet, "report that its node is ready", START_DEADLINE, || async {
            let node = nodes.get(NODE).await.context("read the node")?;
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").context("no condition")?;
            ensure!(ready.status == "True", "{}", ready.message.unwrap_or_default());
            Ok(())
        })
        .await
    }
}

/// Gives the namespaces a network, before anything listens in them.
pub(super) async fn prepare() -> Result<()> {
    require_own_namespaces()?;
    network::set_up().await
}

/// Fails unless this process has namespaces of its own; otherwise it would change the machine's network. A new network
/// namespace has no route.
fn require_own_namespaces() -> Result<()> {
    let routes = std::fs::read_to_string("/proc/net/route").context("read the routes")?;
    ensure!(routes.lines().count() <= 1, "this process has no network namespace of its own: start it with make e2e");
    let first = std::fs::read_to_string("/proc/1/cmdline").context("read the command of process 1")?;
    ensure!(
        first.contains("in_namespaces"),
        "this process has no process namespace of its own: start it with make e2e"
    );
    Ok(())
}

async fn run(program: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = command::command(program);
    command.args(arguments);
    command::output(command).await.map(drop)
}

fn write(file: PathBuf, text: impl AsRef<str>) -> Result<PathBuf> {
    std::fs::write(&file, text.as_ref()).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}
