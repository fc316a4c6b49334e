//! A Prometheus on loopback, which scrapes metrics and evaluates alerts.
//!
//! Promises the same port across stop, kill and start, and that its samples survive them. It listens on that port only
//! and notifies no Alertmanager. The first scrape is 5 seconds after a start, whatever the interval, because Prometheus
//! throttles changes of its list of targets, the first list included.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures_util::future::BoxFuture;
use reqwest::Url;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    folder, http, port,
    process::{Launch, Process},
    service::{Service, wait_until_answered},
    tools,
};

/// The longest a start takes: 0.1 s on an idle machine, more if it must read many samples again.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// The targets and rules of a Prometheus.
#[derive(Debug, Clone)]
pub struct Scrape {
    /// Time between two scrapes of a target, and between two evaluations of the rules: 1 s unless set.
    pub interval: Duration,
    pub targets: Vec<Target>,
    /// Files with recording and alerting rules.
    pub rules: Vec<PathBuf>,
}

impl Default for Scrape {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), targets: Vec::new(), rules: Vec::new() }
    }
}

/// A server whose `/metrics` is scraped.
#[derive(Debug, Clone)]
pub struct Target {
    /// The label `job` of its samples. Several targets may have the same.
    pub job: String,
    /// Host and port; also the label `instance` of its samples.
    pub address: String,
    /// Further labels of its samples.
    pub labels: BTreeMap<String, String>,
}

impl Target {
    pub fn new(job: impl Into<String>, address: impl Into<String>) -> Self {
        Self { job: job.into(), address: address.into(), labels: BTreeMap::new() }
    }

    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }
}

/// A value that a query returned.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// All labels, the metric's name as `__name__`.
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// An alert that is pending or fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    pub name: String,
    /// `pending` until the alert's `for` has passed, then `firing`.
    pub state: String,
    /// All labels, the alert's name as `alertname`.
    pub labels: BTreeMap<String, String>,
}

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    port: u16,
}

impl Prometheus {
    /// Starts `name` below `folder` on a free port.
    pub async fn start(folder: &Path, name: &str, scrape: &Scrape) -> Result<Self> {
        Self::start_on(folder, name, port::free()?, scrape).await
    }

    /// Starts a Prometheus on a chosen port.
    pub async fn start_on(folder: &Path, name: &str, port: u16, scrape: &Scrape) -> Result<Self> {
        let files = folder::data(folder, name)?;
        folder::create(&files)?;
        let settings = files.join("prometheus.yml");
        std::fs::write(&settings, configuration(scrape)?).with_context(|| format!("write {}", settings.display()))?;
        let launch = Launch::new(name, tools::prometheus_program()?, folder::log(folder, name)?)
            .argument(format!("--config.file={}", settings.display()))
            .argument(format!("--storage.tsdb.path={}", files.join("samples").display()))
            .arguments(["--storage.tsdb.retention.time=1d", "--storage.tsdb.retention.size=256MB"])
            .argument(format!("--web.listen-address=127.0.0.1:{port}"));
        let prometheus = Self { process: Process::start(launch)?, port };
        prometheus.wait_until_up().await?;
        Ok(prometheus)
    }

    /// Returns its address: `http://127.0.0.1:<port>`.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Evaluates a PromQL expression now. Returns no sample if nothing matches it; a number has no labels.
    pub async fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        let answer: QueryResult =
            self.get("query", &[("query", expression)]).await.with_context(|| format!("query {expression}"))?;
        let series = match answer {
            QueryResult::Vector(series) => series,
            QueryResult::Scalar(value) => vec![Series { metric: BTreeMap::new(), value }],
        };
        series
            .into_iter()
            .map(|Series { metric, value: (_, text) }| {
                let value = text.parse::<f64>().with_context(|| format!("parse {text}, a value of {expression}"))?;
                Ok(Sample { labels: metric, value })
            })
            .collect()
    }

    /// Returns the alerts that are pending or fire.
    pub async fn alerts(&self) -> Result<Vec<Alert>> {
        let active: ActiveAlerts = self.get("alerts", &[]).await.context("list the alerts")?;
        Ok(active.alerts.into_iter().map(Alert::from).collect())
    }

    /// Sends a request to its API and returns the `data` of the response.
    async fn get<T: DeserializeOwned>(&self, path: &str, parameters: &[(&str, &str)]) -> Result<T> {
        let url = Url::parse_with_params(&format!("{}/api/v1/{path}", self.address()), parameters)?;
        // The body of a refused request is JSON as well, and has the reason.
        let answer: Answer<T> = http::client().get(url).send().await?.json().await?;
        match answer {
            Answer::Success { data } => Ok(data),
            Answer::Error { error } => bail!("{error}"),
        }
    }
}

impl Service for Prometheus {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "become ready", START_DEADLINE, || async {
            let answer = http::client().get(format!("{}/-/ready", self.address())).send().await;
            answer.context("query Prometheus")?.error_for_status().context("read its readiness").map(drop)
        }))
    }
}

/// Returns the configuration as JSON, which is YAML as well, so that any label and path is quoted correctly.
fn configuration(scrape: &Scrape) -> Result<String> {
    let interval = format!("{}ms", scrape.interval.as_millis());
    // Each job may be configured once.
    let mut jobs: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for target in &scrape.targets {
        let group = json!({ "targets": [target.address], "labels": target.labels });
        jobs.entry(&target.job).or_default().push(group);
    }
    let jobs: Vec<Value> =
        jobs.into_iter().map(|(job, groups)| json!({ "job_name": job, "static_configs": groups })).collect();
    // Prometheus ignores a file that does not exist.
    let rules: Vec<PathBuf> = scrape
        .rules
        .iter()
        .map(|file| file.canonicalize().with_context(|| format!("find the rules {}", file.display())))
        .collect::<Result<_>>()?;
    let configuration = json!({
        "global": { "scrape_interval": interval, "evaluation_interval": interval },
        "scrape_configs": jobs,
        "rule_files": rules,
    });
    Ok(format!("{configuration:#}\n"))
}

/// A response of the API.
#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer<T> {
    Success { data: T },
    Error { error: String },
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum QueryResult {
    Vector(Vec<Series>),
    Scalar((f64, String)),
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    /// Time and value. The value is a text, because JSON has no number for NaN, +Inf and -Inf.
    value: (f64, String),
}

#[derive(Deserialize)]
struct ActiveAlerts {
    alerts: Vec<ActiveAlert>,
}

#[derive(Deserialize)]
struct ActiveAlert {
    labels: BTreeMap<String, String>,
    state: String,
}

impl From<ActiveAlert> for Alert {
    fn from(ActiveAlert { labels, state }: ActiveAlert) -> Self {
        Self { name: labels.get("alertname").cloned().unwrap_or_default(), state, labels }
    }
}
