//! The certificates and keys of one control plane: made once for its data folder, kept with its data.
//!
//! They have to outlive a restart: the tokens of service accounts are signed with one of these keys, and clients hold
//! the authority.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::kubeconfig::write_private;
use crate::folder;

/// A PEM certificate and its PEM key.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Where they are.
#[derive(Debug)]
pub(super) struct Certificates {
    /// Signs all below; its own key is thrown away.
    pub(super) authority: PathBuf,
    pub(super) api_server: Pair,
    pub(super) admin: Pair,
    pub(super) controller_manager: Pair,
    /// Signs the tokens of service accounts; the other one checks them.
    pub(super) service_account_key: PathBuf,
    pub(super) service_account_public_key: PathBuf,
}

impl Certificates {
    /// Those of the control plane whose data is in `files`; makes them if there are none yet.
    pub(super) fn of(files: &Path) -> Result<Self> {
        let home = files.join("certificates");
        if !home.exists() {
            let unfinished = files.join("certificates.unfinished");
            Self::in_folder(&unfinished).make(&unfinished).context("make certificates")?;
            std::fs::rename(&unfinished, &home).with_context(|| format!("name folder {}", home.display()))?;
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
            service_account_key: home.join("service-accounts.key"),
            service_account_public_key: home.join("service-accounts.pub"),
        }
    }

    fn make(&self, home: &Path) -> Result<()> {
        folder::create(home)?;
        let mut authority = named("orderflow-testbed", None);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        write_private(&self.authority, &authority.pem())?;

        let mut server = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.api_server.make(server, &authority)?;

        // Kubernetes takes the common name for the user and the organization for a group.
        self.admin.make(user("admin", Some("system:masters")), &authority)?;
        self.controller_manager.make(user("system:kube-controller-manager", None), &authority)?;

        let service_accounts = KeyPair::generate()?;
        write_private(&self.service_account_key, &service_accounts.serialize_pem())?;
        write_private(&self.service_account_public_key, &service_accounts.public_key_pem())
    }
}

impl Pair {
    fn make(&self, mut params: CertificateParams, authority: &CertifiedIssuer<'_, KeyPair>) -> Result<()> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Strict clients refuse a certificate that does not say who signed it.
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        write_private(&self.certificate, &params.signed_by(&key, authority)?.pem())?;
        write_private(&self.key, &key.serialize_pem())
    }
}

fn user(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = named(name, group);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn named(name: &str, organization: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params
}
