//! A real Kubernetes control plane on loopback: etcd, the API server with RBAC and Pod Security admission, and the
//! controller manager.
//!
//! Promises the same port, certificates and data across kill and start, a complete audit log, and that "up" means the
//! controllers act. Without a [`Node`] no scheduler runs either: Deployments become pods, and the pods stay pending.
//!
//! The garbage collector discovers new kinds every 30 s, which cannot be changed. While a CRD is new, objects that
//! belong to a custom resource may outlive it by that much.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client, Config, api::DeleteParams};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::{
    folder, http, port,
    process::{Launch, Process},
    service::{STOP_GRACE, wait_until_answered},
    tools,
};
use api_server::Reach;
use certificates::Certificates;
use kubeconfig::{Credentials, kubeconfig};

mod address;
mod api_server;
mod certificates;
mod controller_manager;
mod etcd;
mod fake_kubelet;
mod kubeconfig;
mod node;

pub use address::NODE;
pub use fake_kubelet::FakeKubelet;
pub use node::Node;

/// The longest a component takes to start: 4 s on an idle machine with two cores, far longer beside a compiler.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// A running control plane.
///
/// Holds processes and paths only, no client and no task, so that one in a `static` serves tests on many runtimes.
#[derive(Debug)]
pub struct Kubernetes {
    // Fields are dropped in this order: each before what it depends on.
    controller_manager: Process,
    api_server: Process,
    etcd: Process,
    port: u16,
    etcd_port: u16,
    files: PathBuf,
    certificates: Certificates,
    admin_kubeconfig: PathBuf,
    audit_log: PathBuf,
}

impl Kubernetes {
    /// Starts `name` below `folder` on free ports; a control plane that ran there before comes back with its data.
    pub async fn start(folder: &Path, name: &str) -> Result<Self> {
        Self::start_reachable(folder, name, Reach::Loopback).await
    }

    /// Starts a control plane that the pods of a [`Node`] reach as well.
    ///
    /// # Errors
    /// Also if this process still shares the network of the machine.
    pub async fn start_for_node(folder: &Path, name: &str) -> Result<Self> {
        node::prepare().await?;
        Self::start_reachable(folder, name, Reach::Pods).await
    }

    async fn start_reachable(folder: &Path, name: &str, reach: Reach) -> Result<Self> {
        let files = folder::data(folder, name)?;
        folder::create(&files)?;
        let certificates = Certificates::load_or_create(&files)?;
        let (port, etcd_port) = (port::free()?, port::free()?);
        let url = url(port);
        let audit_log = folder::log(folder, &format!("{name}-audit"))?;

        let launch = |component| launch(folder, name, component);
        let etcd = Process::start(etcd::launch(launch("etcd")?, &files, etcd_port)?)?;
        wait_for_etcd(&etcd, etcd_port).await?;

        let settings = api_server::Settings { port, etcd_port, audit_log: &audit_log, reach };
        let api_server =
            Process::start(api_server::launch(launch("kube-apiserver")?, &files, &certificates, &settings)?)?;
        let admin = Credentials::Certificate(&certificates.admin);
        let admin_kubeconfig = kubeconfig(&files, "admin", &url, &certificates.authority, &admin)?;
        let client = client(&url, &certificates, &admin)?;
        wait_for_api_server(&api_server, &client).await?;

        let own = Credentials::Certificate(&certificates.controller_manager);
        let own = kubeconfig(&files, "controller-manager", &url, &certificates.authority, &own)?;
        let launch = controller_manager::launch(launch("kube-controller-manager")?, &certificates, &own);
        let controller_manager = Process::start(launch)?;
        wait_for_controllers(&controller_manager, &client).await?;

        Ok(Self {
            controller_manager,
            api_server,
            etcd,
            port,
            etcd_port,
            files,
            certificates,
            admin_kubeconfig,
            audit_log,
        })
    }

    /// Returns the address of the API server, without a path.
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// Returns the kubeconfig file of a member of `system:masters`, who may do everything.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin_kubeconfig
    }

    /// Writes a kubeconfig file for the owner of a bearer token, such as a service account. `name` is the name of file
    /// and user; an existing file is replaced.
    pub fn kubeconfig_with_token(&self, name: &str, token: &str) -> Result<PathBuf> {
        ensure!(Path::new(name).file_name().is_some_and(|file| file == name), "{name:?} is not a file name");
        kubeconfig(
            &self.files,
            &format!("token-{name}"),
            &self.url(),
            &self.certificates.authority,
            &Credentials::Token(token),
        )
    }

    /// Returns a new client per call, with all rights: a client belongs to the runtime it was created on.
    pub fn client(&self) -> Result<Client> {
        client(&self.url(), &self.certificates, &Credentials::Certificate(&self.certificates.admin))
    }

    /// Returns a new client with the rights of the token's owner.
    pub fn client_with_token(&self, token: &str) -> Result<Client> {
        client(&self.url(), &self.certificates, &Credentials::Token(token))
    }

    /// Returns the file with one JSON line (`audit.k8s.io/v1` Event) per request: user, verb, object and response code,
    /// without bodies. The line is written with the response (`stage` `ResponseComplete`); a watch has one at its
    /// start, too.
    pub fn audit_log(&self) -> &Path {
        &self.audit_log
    }

    pub fn api_server(&self) -> &Process {
        &self.api_server
    }

    pub fn etcd(&self) -> &Process {
        &self.etcd
    }

    pub fn controller_manager(&self) -> &Process {
        &self.controller_manager
    }

    /// Stops the API server gracefully.
    pub async fn stop_api_server(&self) -> Result<()> {
        self.api_server.terminate(STOP_GRACE).await.map(drop)
    }

    /// Starts the API server again, whether it was stopped, killed or still runs, and waits until the control plane is
    /// up.
    pub async fn start_api_server_again(&self) -> Result<()> {
        self.api_server.start_again()?;
        self.wait_until_up().await
    }

    /// Waits until the API server is ready and the controller manager acts.
    pub async fn wait_until_up(&self) -> Result<()> {
        let client = self.client()?;
        wait_for_etcd(&self.etcd, self.etcd_port).await?;
        wait_for_api_server(&self.api_server, &client).await?;
        wait_for_controllers(&self.controller_manager, &client).await
    }
}

fn url(port: u16) -> String {
    format!("https://127.0.0.1:{port}")
}

/// Returns a component's program and log; the component adds its flags.
fn launch(folder: &Path, name: &str, component: &'static str) -> Result<Launch> {
    let name = format!("{name}-{component}");
    let log = folder::log(folder, &name)?;
    let (program, first_argument) = tools::kubernetes_program(component)?;
    Ok(Launch::new(name, program, log).arguments(first_argument))
}

async fn wait_for_etcd(etcd: &Process, port: u16) -> Result<()> {
    let health = format!("http://127.0.0.1:{port}/health");
    wait_until_answered(etcd, "report that it is healthy", START_DEADLINE, || async {
        http::client()
            .get(&health)
            .send()
            .await
            .context("query etcd")?
            .error_for_status()
            .context("query etcd")
            .map(drop)
    })
    .await
}

async fn wait_for_api_server(api_server: &Process, client: &Client) -> Result<()> {
    wait_until_answered(api_server, "report that it is ready", START_DEADLINE, || async {
        let request = hyper::Request::get("/readyz").body(Vec::new()).context("build a request")?;
        client.request_text(request).await.context("query the API server").map(drop)
    })
    .await
}

/// Waits until the controllers act. Every namespace must have a service account, but one from a former run would prove
/// nothing. So an unused one is deleted, and comes back once the controllers act.
async fn wait_for_controllers(controller_manager: &Process, client: &Client) -> Result<()> {
    let unused: Api<ServiceAccount> = Api::namespaced(client.clone(), "kube-public");
    let used: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    match unused.delete("default", &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        deleted => drop(deleted.context("delete the service account of namespace kube-public")?),
    }
    wait_until_answered(controller_manager, "create service accounts", START_DEADLINE, || async {
        unused.get("default").await.context("read the service account of namespace kube-public")?;
        used.get("default").await.context("read the service account of namespace default").map(drop)
    })
    .await
}

/// Builds a client by hand, because kube's way from a kubeconfig file also uses the proxy variables of the machine.
fn client(url: &str, certificates: &Certificates, credentials: &Credentials<'_>) -> Result<Client> {
    let mut config = Config::new(url.parse().context("parse the API server's address")?);
    let authority = CertificateDer::from_pem_file(&certificates.authority).context("read the authority")?;
    config.root_cert = Some(vec![authority.to_vec()]);
    match credentials {
        Credentials::Certificate(pair) => {
            config.auth_info.client_certificate = Some(pair.certificate.display().to_string());
            config.auth_info.client_key = Some(pair.key.display().to_string());
        }
        Credentials::Token(token) => config.auth_info.token = Some((*token).to_owned().into()),
    }
    Client::try_from(config).context("create a Kubernetes client")
}
