//! The real kubectl, as people use it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use orderflow_testbed::{
    command, eventually, folder,
    process::{Launch, Process},
    tools,
};
use serde_json::Value;

use crate::ROLLOUT;

#[derive(Debug)]
pub struct Kubectl {
    kubeconfig: PathBuf,
    namespace: String,
}

impl Kubectl {
    pub fn new(kubeconfig: &Path, namespace: &str) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), namespace: namespace.to_owned() }
    }

    /// Runs kubectl and returns what it printed.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        command::output(self.command(arguments)?).await
    }

    pub async fn apply(&self, file: &Path) -> Result<()> {
        let file = file.display().to_string();
        self.run(&["apply", "--server-side", "-f", &file]).await.map(drop)
    }

    /// Applies objects without a file of their own; they are written to a file called `name`.
    pub async fn apply_value(&self, name: &str, value: &Value) -> Result<()> {
        let file = folder::for_test_process()?.join(format!("{name}.json"));
        std::fs::write(&file, value.to_string()).context("write objects")?;
        self.apply(&file).await
    }

    pub async fn get(&self, what: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = ["get", "-o", "json"].into_iter().chain(what.iter().copied()).collect();
        serde_json::from_str(&self.run(&arguments).await?).context("parse kubectl's output")
    }

    /// Waits as `kubectl wait` and `kubectl rollout status` do.
    pub async fn wait(&self, arguments: &[&str]) -> Result<()> {
        let timeout = format!("--timeout={}s", ROLLOUT.as_secs() - 10);
        self.run(&[arguments, &[&timeout]].concat()).await.map(drop)
    }

    /// Forwards a port of this machine to a Service, until it is dropped.
    pub async fn port_forward(&self, service: &str, port: u16) -> Result<(Process, String)> {
        let log = folder::log(folder::for_test_process()?, "port-forward")?;
        let (program, first_argument) = tools::kubectl()?;
        let launch = Launch::new("kubectl port-forward", program, log)
            .arguments(first_argument)
            .env("HOME", folder::for_test_process()?)
            .argument("--kubeconfig")
            .argument(&self.kubeconfig)
            .arguments(["--namespace", &self.namespace, "port-forward", service])
            .argument(format!(":{port}"));
        let process = Process::start(launch)?;
        let url = eventually("kubectl to forward a port", ROLLOUT, || async {
            let log = process.log_since_start();
            let port = log.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned);
            port.map(|port| format!("http://127.0.0.1:{port}")).with_context(|| log)
        })
        .await?;
        Ok((process, url))
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let (program, first_argument) = tools::kubectl()?;
        let mut command = command::command(&program);
        // kubectl's cache of what an API server knows must not be shared by two clusters at one address.
        command.env("HOME", folder::for_test_process()?).args(first_argument);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--namespace", &self.namespace]).args(arguments);
        Ok(command)
    }
}
