//! Kubeconfig files: the address of the control plane, and the credentials of a client.
//!
//! They name the certificates by their absolute paths and are written as JSON, which every YAML parser reads.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use super::certificates::Pair;
use crate::folder::write_private;

/// The credentials of a client.
pub(super) enum Credentials<'a> {
    Certificate(&'a Pair),
    Token(&'a str),
}

/// Writes `files/<user>.kubeconfig` for the API server at `url`.
pub(super) fn kubeconfig(
    files: &Path,
    user: &str,
    url: &str,
    authority: &Path,
    credentials: &Credentials<'_>,
) -> Result<PathBuf> {
    let credentials = match credentials {
        Credentials::Certificate(Pair { certificate, key }) => {
            json!({ "client-certificate": certificate, "client-key": key })
        }
        Credentials::Token(token) => json!({ "token": token }),
    };
    let text = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "testbed", "cluster": { "server": url, "certificate-authority": authority } }],
        "users": [{ "name": user, "user": credentials }],
        "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": user, "namespace": "default" } }],
        "current-context": "testbed",
    });
    let file = files.join(format!("{user}.kubeconfig"));
    write_private(&file, &format!("{text:#}\n"))?;
    Ok(file)
}
