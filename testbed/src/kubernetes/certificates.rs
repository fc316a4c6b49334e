//! The certificates and keys of one control plane: created once for its data folder and kept with its data.
//!
//! They must outlive a restart: one of these keys signs the tokens of service accounts, and clients hold the authority.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::KeyPair;

use super::address::{API_SERVER_ADDRESS, NODE, NODE_ADDRESS};
use crate::{
    certificates::{self, Authority},
    folder::{self, write_private},
};

/// The files of a certificate and its key.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// The certificate and key files of all components.
#[derive(Debug)]
pub(super) struct Certificates {
    /// The certificate of the authority that signs all below; its key is thrown away.
    pub(super) authority: PathBuf,
    pub(super) api_server: Pair,
    pub(super) admin: Pair,
    pub(super) controller_manager: Pair,
    pub(super) scheduler: Pair,
    pub(super) kubelet: Pair,
    pub(super) kube_proxy: Pair,
    /// The identity of the API server as a kubelet's client.
    pub(super) kubelet_client: Pair,
    /// The key that signs the tokens of service accounts; the public key checks them.
    pub(super) service_account_key: PathBuf,
    pub(super) service_account_public_key: PathBuf,
}

/// The names of the API server: on this machine, and in pods, which use its Service's address.
const API_SERVER_NAMES: [&str; 4] = ["127.0.0.1", "localhost", API_SERVER_ADDRESS, NODE_ADDRESS];

impl Certificates {
    /// Returns the certificates of the control plane whose data is in `files`, and creates them if none exist.
    pub(super) fn load_or_create(files: &Path) -> Result<Self> {
        let home = files.join("certificates");
        if !home.exists() {
            let unfinished = files.join("certificates.unfinished");
            Self::in_folder(&unfinished).create(&unfinished).context("create certificates")?;
            std::fs::rename(&unfinished, &home).with_context(|| format!("rename folder {}", home.display()))?;
        }
        Ok(Self::in_folder(&home))
    }

    fn in_folder(home: &Path) -> Self {
        let pair =
            |name: &str| Pair { certificate: home.join(format!("{name}.crt")), key: home.join(format!("{name}.key")) };
        Self {
            authority: home.join("authority.crt"),
            api_server: pair("api-server"),
            admin: pair("admin"),
            controller_manager: pair("controller-manager"),
            scheduler: pair("scheduler"),
            kubelet: pair("kubelet"),
            kube_proxy: pair("kube-proxy"),
            kubelet_client: pair("kubelet-client"),
            service_account_key: home.join("service-accounts.key"),
            service_account_public_key: home.join("service-accounts.pub"),
        }
    }

    fn create(&self, home: &Path) -> Result<()> {
        folder::create(home)?;
        let authority = Authority::new("orderflow-testbed")?;
        write_private(&self.authority, &authority.pem())?;
        self.api_server.write(&authority.server("kube-apiserver", &API_SERVER_NAMES)?)?;
        // Kubernetes takes the common name for the user and the organization for a group.
        self.admin.write(&authority.client("admin", Some("system:masters"))?)?;
        self.controller_manager.write(&authority.client("system:kube-controller-manager", None)?)?;
        self.scheduler.write(&authority.client("system:kube-scheduler", None)?)?;
        self.kubelet.write(&authority.client(&format!("system:node:{NODE}"), Some("system:nodes"))?)?;
        self.kube_proxy.write(&authority.client("system:kube-proxy", None)?)?;
        self.kubelet_client.write(&authority.client("kube-apiserver", Some("system:masters"))?)?;

        let service_accounts = KeyPair::generate()?;
        write_private(&self.service_account_key, &service_accounts.serialize_pem())?;
        write_private(&self.service_account_public_key, &service_accounts.public_key_pem())
    }
}

impl Pair {
    fn write(&self, pair: &certificates::Pair) -> Result<()> {
        pair.write(&self.certificate, &self.key)
    }
}
