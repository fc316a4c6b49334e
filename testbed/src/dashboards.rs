//! The dashboards and rules that the chart orderflow-monitoring ships, as tests use them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::folder;

/// An expression of a panel.
#[derive(Debug, Clone)]
pub struct Query {
    pub dashboard: String,
    pub panel: String,
    /// The expression, with all variables of the dashboard set to "All".
    pub expression: String,
}

/// Returns the folder of the chart's files.
pub fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/orderflow-monitoring/files")
}

/// Returns the dashboards: name and content.
pub fn all() -> Result<Vec<(String, Value)>> {
    let folder = files().join("dashboards");
    let mut dashboards = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let content = serde_json::from_slice(&std::fs::read(&path)?).with_context(|| path.display().to_string())?;
        dashboards.push((name, content));
    }
    ensure!(!dashboards.is_empty(), "{} has no dashboard", folder.display());
    dashboards.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(dashboards)
}

/// Returns all panels of a dashboard, also those of collapsed rows.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let direct = dashboard["panels"].as_array().into_iter().flatten();
    direct.flat_map(|panel| std::iter::once(panel).chain(panel["panels"].as_array().into_iter().flatten())).collect()
}

/// Returns the expressions of the dashboards with these names.
pub fn queries(names: &[&str]) -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for (name, dashboard) in all()? {
        if !names.contains(&name.as_str()) {
            continue;
        }
        for panel in panels(&dashboard) {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let text =
                    target["expr"].as_str().with_context(|| format!("{name}: a target without expr: {target}"))?;
                let panel = panel["title"].as_str().unwrap_or_default().to_owned();
                queries.push(Query { dashboard: name.clone(), panel, expression: expanded(&dashboard, text) });
            }
        }
    }
    Ok(queries)
}

/// Sets the variables of an expression as Grafana does, with all values chosen and a short interval.
fn expanded(dashboard: &Value, expression: &str) -> String {
    let own = dashboard["templating"]["list"].as_array().into_iter().flatten();
    let mut own: Vec<&str> = own.filter_map(|variable| variable["name"].as_str()).collect();
    // The longest first: one name may begin with another.
    own.sort_by_key(|name| std::cmp::Reverse(name.len()));
    let values = [("__rate_interval", "1m"), ("__interval", "10s"), ("__range", "15m")];
    let values = values.into_iter().chain(own.into_iter().map(|name| (name, ".*")));
    values.fold(expression.to_owned(), |text, (name, value)| {
        text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value)
    })
}

/// Writes the chart's rules below `folder` with alerts that fire after a second, and returns the file. Waiting is not
/// what a test of the expressions is about; promtool tests it.
pub fn impatient_rules(name: &str) -> Result<PathBuf> {
    let text = std::fs::read_to_string(files().join("rules.yaml")).context("read the rules")?;
    let is_wait = |line: &&str| line.trim_start().starts_with("for: ");
    let lines = text.lines().map(|line| if is_wait(&line) { "    for: 1s" } else { line });
    let path = folder::data(folder::for_test_process()?, name)?.with_extension("rules.yaml");
    std::fs::write(&path, lines.collect::<Vec<_>>().join("\n")).with_context(|| path.display().to_string())?;
    Ok(path)
}
