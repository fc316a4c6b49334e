//! The API server of all tests, with the definition of each kind that the charts create.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use orderflow_testbed::{Kubernetes, eventually, folder, wait::PATIENCE};
use serde_json::json;
use tokio::sync::OnceCell;

use crate::{
    files::{OPERATOR, chart, objects, repository},
    site::Site,
};

/// Returns the shared control plane, with the definitions of all kinds that the charts create: OrderFlow's by a release
/// of the operator's chart, Strimzi's if this machine has them.
pub async fn kubernetes() -> Result<&'static Kubernetes> {
    static STARTED: OnceCell<Kubernetes> = OnceCell::const_new();
    static PREPARED: OnceCell<()> = OnceCell::const_new();
    let kubernetes =
        STARTED.get_or_try_init(async || Kubernetes::start(folder::for_test_process()?, "kubernetes").await).await?;
    PREPARED
        .get_or_try_init(async || {
            let client = kubernetes.client()?;
            install_definitions(&client, &repository("testbed/tests/charts/definitions")).await?;
            if let Some(folder) = strimzi()? {
                install_definitions(&client, &folder).await?;
            }
            let site = Site::of_the_definition(kubernetes).await?;
            site.helm.install(OPERATOR, &chart(OPERATOR), &json!({})).await?;
            is_served(&client, "orderflows.orderflow.dev").await
        })
        .await?;
    Ok(kubernetes)
}

/// Returns the folder with the definitions of Strimzi's kinds, if this machine has one.
pub fn strimzi() -> Result<Option<PathBuf>> {
    if let Some(folder) = std::env::var_os("STRIMZI_CRDS").filter(|folder| !folder.is_empty()) {
        let folder = PathBuf::from(folder);
        ensure!(folder.is_dir(), "STRIMZI_CRDS ({}) is no folder", folder.display());
        return Ok(Some(folder));
    }
    let beside = repository("../shared/reference/strimzi-1.2.0-crds");
    Ok(beside.is_dir().then_some(beside))
}

/// Returns whether the API server has Strimzi's kinds. If not, prints what is not tested.
pub fn has_strimzi(skipped: &str) -> Result<bool> {
    let found = strimzi()?.is_some();
    if !found {
        // The harness hides the `eprintln!` output of a test that succeeds.
        writeln!(
            std::io::stderr(),
            "SKIPPED, {skipped}: no definitions of Strimzi's kinds (STRIMZI_CRDS names no folder with them)"
        )?;
    }
    Ok(found)
}

async fn install_definitions(client: &Client, folder: &Path) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let file = entry?.path();
        let text = std::fs::read_to_string(&file)?;
        for definition in objects(&text).with_context(|| format!("read {}", file.display()))? {
            let name = definition["metadata"]["name"].as_str().context("a definition without a name")?.to_owned();
            api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&definition)).await?;
            names.push(name);
        }
    }
    for name in names {
        is_served(client, &name).await?;
    }
    Ok(())
}

async fn is_served(client: &Client, name: &str) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    eventually(&format!("{name} to be served"), PATIENCE, async || {
        let conditions = api.get(name).await?.status.unwrap_or_default().conditions.unwrap_or_default();
        ensure!(conditions.iter().any(|found| found.type_ == "Established" && found.status == "True"));
        Ok(())
    })
    .await
}
