//! Renders the page of metrics from what the programs' registries export.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    head,
    table::{Table, code, none, prose},
};

/// A program, and what its `/metrics` exports once each of its metrics has a series.
pub struct Program {
    pub name: &'static str,
    /// The OpenMetrics text.
    pub text: String,
    pub labels: Vec<Label>,
    /// Follows the table; may be empty.
    pub note: &'static str,
}

/// The values of a label that has a fixed set of them.
pub struct Label {
    pub name: String,
    /// Each value with its meaning.
    pub values: Vec<(String, String)>,
}

/// A metric as the page shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: String,
    kind: String,
    help: String,
    pub labels: Vec<String>,
}

/// Returns the whole page. Metrics that every program has come first.
pub fn page(programs: &[Program]) -> String {
    let mut text = head(
        "Metrics",
        "For anyone who writes alerts or dashboards. Every process serves its metrics as `/metrics` on its admin port \
         (`ADMIN_PORT`), as OpenMetrics text. [Observe OrderFlow](../how-to/observe.md) has the alerts.",
    );
    text.push_str(
        "\nA histogram has the suffixes `_bucket`, `_sum` and `_count`. Times are in seconds. A counter may \
         get the series of a label only with its first count, which `increase` then misses.\n",
    );
    let metrics: Vec<Vec<Metric>> = programs.iter().map(|program| parse(&program.text)).collect();
    let shared = |metric: &Metric| metrics.iter().all(|others| others.contains(metric));
    let of_all = metrics.first().into_iter().flatten().filter(|metric| shared(metric)).cloned().collect();
    write_section(&mut text, "All programs", of_all, &[], "");
    for (program, metrics) in programs.iter().zip(&metrics) {
        let own = metrics.iter().filter(|metric| !shared(metric)).cloned().collect();
        write_section(&mut text, program.name, own, &program.labels, program.note);
    }
    text
}

fn write_section(text: &mut String, name: &str, mut metrics: Vec<Metric>, labels: &[Label], note: &str) {
    metrics.sort_by(|one, other| one.name.cmp(&other.name));
    let rows = metrics.iter().map(|Metric { name, kind, help, labels }| {
        let labels: Vec<String> = labels.iter().map(code).collect();
        let labels = if labels.is_empty() { none() } else { labels.join(", ") };
        [code(name), kind.clone(), labels, prose(help)]
    });
    let table = Table::new(["metric", "type", "labels", "meaning"]).rows(rows).render();
    let _ = write!(text, "\n## {name}\n\n{table}");
    if !note.is_empty() {
        let _ = write!(text, "\n{note}\n");
    }
    for Label { name, values } in labels {
        let users: Vec<String> =
            metrics.iter().filter(|metric| metric.labels.contains(name)).map(|metric| code(&metric.name)).collect();
        let _ = write!(text, "\nValues of {} in {}:\n\n", code(name), users.join(", "));
        for (value, meaning) in values {
            let separator = if meaning.is_empty() { "" } else { ": " };
            let _ = writeln!(text, "- {}{separator}{}", code(value), prose(meaning));
        }
    }
}

/// Reads the metrics of an OpenMetrics text.
pub fn parse(text: &str) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = Vec::new();
    let mut helps: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            // The library ends most of them with a full stop.
            helps.insert(name, help.trim_end_matches('.'));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let help = helps.get(name).copied().unwrap_or_default().to_owned();
            metrics.push(Metric { name: format!("{name}{suffix}"), kind: kind.to_owned(), help, labels: Vec::new() });
        } else if !line.starts_with('#')
            && let Some(metric) = metrics.last_mut()
        {
            // Series of one metric may have different labels only in that a histogram's buckets have `le`.
            metric.labels = label_names(line).into_iter().filter(|name| name != "le").collect();
        }
    }
    metrics
}

/// Returns the names of the labels of a series.
fn label_names(line: &str) -> Vec<String> {
    let Some((_, mut rest)) = line.split_once('{') else { return Vec::new() };
    let mut names = Vec::new();
    while let Some((name, value)) = rest.split_once("=\"") {
        names.push(name.trim_start_matches(',').to_owned());
        let mut escaped = false;
        let end = value.find(|character| {
            let ends = character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            ends
        });
        rest = end.map_or("", |end| &value[end + 1..]);
        if rest.starts_with('}') {
            break;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_read_with_its_type_labels_and_help() {
        let text = "# HELP orders Orders by outcome.\n# TYPE orders counter\norders_total{shard=\"a\\\"}\",outcome=\"x\"} 1\n\
                    # HELP time Time.\n# TYPE time histogram\ntime_sum 0\ntime_bucket{le=\"+Inf\"} 0\n# EOF\n";
        let metric = |name: &str, kind: &str, help: &str, labels: &[&str]| Metric {
            name: name.to_owned(),
            kind: kind.to_owned(),
            help: help.to_owned(),
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
        };
        let expected = [
            metric("orders_total", "counter", "Orders by outcome", &["shard", "outcome"]),
            metric("time", "histogram", "Time", &[]),
        ];
        assert_eq!(parse(text), expected);
    }
}
