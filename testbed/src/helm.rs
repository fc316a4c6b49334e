//! The real Helm, as who installs OrderFlow uses it: renders, installs, upgrades and removes releases of a chart.
//!
//! Promises that each call ends, that one which fails says what Helm said, and that nothing of this user's own Helm
//! (configuration, cache, plugins) is read or written.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::{command, folder, tools};

/// Helm in one namespace of one cluster.
#[derive(Debug, Clone)]
pub struct Helm {
    program: PathBuf,
    kubeconfig: PathBuf,
    namespace: String,
    home: PathBuf,
}

/// A release as Helm tells of it: `--output json` of `install`, `upgrade` and `status`.
#[derive(Debug, Clone, Deserialize)]
pub struct Release {
    pub name: String,
    /// Counts installation and upgrades.
    #[serde(rename = "version")]
    pub revision: u32,
    pub info: Info,
    /// YAML documents of everything but hooks.
    #[serde(default)]
    pub manifest: String,
    #[serde(default)]
    pub hooks: Vec<Hook>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Info {
    /// `deployed`, `failed`, …
    pub status: String,
    /// What is printed at the end.
    #[serde(default)]
    pub notes: String,
}

/// An object that is made at some moments only, and is no part of the release.
#[derive(Debug, Clone, Deserialize)]
pub struct Hook {
    pub name: String,
    pub kind: String,
    /// `pre-delete`, `test`, …
    pub events: Vec<String>,
    /// One YAML document.
    pub manifest: String,
}

impl Release {
    /// The YAML documents of everything that it ever makes, hooks and tests included.
    pub fn manifests(&self) -> String {
        let hooks = self.hooks.iter().map(|hook| format!("\n---\n{}", hook.manifest));
        std::iter::once(self.manifest.clone()).chain(hooks).collect()
    }
}

impl Helm {
    /// `folder` is where it keeps its own files.
    pub fn new(folder: &Path, kubeconfig: &Path, namespace: &str) -> Result<Self> {
        let home = folder::data(folder, "helm")?;
        folder::create(&home)?;
        Ok(Self { program: tools::helm()?, kubeconfig: kubeconfig.to_owned(), namespace: namespace.to_owned(), home })
    }

    /// What an installation would be in this cluster, with its NOTES; nothing is made.
    pub async fn render(&self, release: &str, chart: &Path, values: &Value) -> Result<Release> {
        self.release("install", release, chart, values, &["--dry-run=server"]).await
    }

    /// The same in a cluster that has nothing but Kubernetes' own kinds; none is asked.
    pub async fn render_alone(&self, release: &str, chart: &Path, values: &Value) -> Result<Release> {
        self.release("install", release, chart, values, &["--dry-run=client"]).await
    }

    pub async fn install(&self, release: &str, chart: &Path, values: &Value) -> Result<Release> {
        self.release("install", release, chart, values, &[]).await
    }

    /// Values of former revisions are forgotten, as they are when `helm upgrade` is given any.
    pub async fn upgrade(&self, release: &str, chart: &Path, values: &Value) -> Result<Release> {
        self.release("upgrade", release, chart, values, &["--reset-values"]).await
    }

    pub async fn status(&self, release: &str) -> Result<Release> {
        parse(&self.run(&["status", release, "--output=json"]).await?)
    }

    pub async fn uninstall(&self, release: &str, options: &[&str]) -> Result<String> {
        let arguments: Vec<&str> = ["uninstall", release].iter().chain(options).copied().collect();
        self.run(&arguments).await
    }

    /// Warnings are errors.
    pub async fn lint(&self, chart: &Path, values: &Value) -> Result<String> {
        self.run(&["lint", "--strict", path(chart)?, "--set-json", &values.to_string()]).await
    }

    /// Any other command; what it printed.
    ///
    /// # Errors
    /// If it failed or did not end: the command, and all that it said.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = command::command(&self.program);
        command.args(arguments).arg("--namespace").arg(&self.namespace).arg("--kubeconfig").arg(&self.kubeconfig);
        command.env("HOME", &self.home);
        command::output(command).await
    }

    async fn release(
        &self,
        command: &str,
        release: &str,
        chart: &Path,
        values: &Value,
        options: &[&str],
    ) -> Result<Release> {
        let values = values.to_string();
        let mut arguments = vec![command, release, path(chart)?, "--set-json", &values, "--output=json"];
        arguments.extend(options);
        parse(&self.run(&arguments).await?)
    }
}

fn parse(printed: &str) -> Result<Release> {
    serde_json::from_str(printed).with_context(|| format!("read what helm printed: {printed}"))
}

fn path(chart: &Path) -> Result<&str> {
    chart.to_str().with_context(|| format!("{} is no UTF-8", chart.display()))
}
