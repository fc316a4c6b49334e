//! The real Helm, as someone who installs OrderFlow uses it: renders, installs, upgrades and removes releases of a
//! chart.
//!
//! Promises that each call ends, that the error of a failed call includes Helm's output, and that Helm neither reads
//! nor writes this user's own configuration, cache and plugins.

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

/// A release, as `--output json` of `install`, `upgrade` and `status` describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Release {
    pub name: String,
    /// The number of this revision; installation and each upgrade add one.
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
    /// The text that Helm prints at the end.
    #[serde(default)]
    pub notes: String,
}

/// An object that exists at certain moments only, and is no part of the release.
#[derive(Debug, Clone, Deserialize)]
pub struct Hook {
    pub name: String,
    pub kind: String,
    /// `pre-delete`, `test`, …
    pub events: Vec<String>,
    /// The YAML document of the object.
    pub manifest: String,
}

impl Release {
    /// Returns the YAML documents of all objects that the release ever creates, hooks and tests included.
    pub fn manifests(&self) -> String {
        let hooks = self.hooks.iter().map(|hook| format!("\n---\n{}", hook.manifest));
        std::iter::once(self.manifest.clone()).chain(hooks).collect()
    }
}

impl Helm {
    /// Creates a Helm that keeps its own files below `folder`.
    pub fn new(folder: &Path, kubeconfig: &Path, namespace: &str) -> Result<Self> {
        let home = folder::data(folder, "helm")?;
        folder::create(&home)?;
        Ok(Self { program: tools::helm()?, kubeconfig: kubeconfig.to_owned(), namespace: namespace.to_owned(), home })
    }

    /// Renders what an installation would create in this cluster, with its NOTES. Creates nothing.
    pub async fn render(&self, release: &str, chart: &Path, values: &Value) -> Result<Release> {
        self.release("install", release, chart, values, &["--dry-run=server"]).await
    }

    /// Renders for a cluster that has Kubernetes' own kinds only, without asking a cluster.
    pub async fn render_alone(&self, release: &str, chart: &Path, values: &Value) -> Result<Release> {
        self.release("install", release, chart, values, &["--dry-run=client"]).await
    }

    pub async fn install(&self, release: &str, chart: &Path, values: &Value) -> Result<Release> {
        self.release("install", release, chart, values, &[]).await
    }

    /// Upgrades a release. Values of former revisions are dropped, as `helm upgrade` does when it is given any.
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

    /// Lints a chart; warnings are errors.
    pub async fn lint(&self, chart: &Path, values: &Value) -> Result<String> {
        self.run(&["lint", "--strict", path(chart)?, "--set-json", &values.to_string()]).await
    }

    /// Runs any other command and returns what it printed.
    ///
    /// # Errors
    /// Shows the command line and all its output if it failed or did not end.
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
    serde_json::from_str(printed).with_context(|| format!("parse helm's output: {printed}"))
}

fn path(chart: &Path) -> Result<&str> {
    chart.to_str().with_context(|| format!("{} is no UTF-8", chart.display()))
}
