//! What the programs' registries export once each metric has a series.

use std::collections::BTreeSet;

use orderflow_consumer::metrics::{OutcomeLabel, OutcomeValue, RejoinLabel, RejoinReason};
use orderflow_operator::condition::Reason;
use orderflow_producer::metrics::{RequestLabels, RouteLabels};
use orderflow_reference::metrics::{self, Label, Program};
use orderflow_service::{
    Dependencies, Need, Supervisor, metrics as common_metrics,
    prometheus::{encoding::text::encode, registry::Registry},
    shutdown::CancellationToken,
};
use syn::{Fields, Item, Type};

use crate::common;

pub fn page() -> String {
    metrics::page(&programs())
}

fn programs() -> [Program; 3] {
    [
        program("Producer", "producer/src/metrics.rs", "", |registry| {
            let metrics = orderflow_producer::metrics::Metrics::register(registry);
            metrics.backlog("shard1");
            metrics.shard("shard1").unsafe_settings.replace(BTreeSet::new());
            let (method, route) = ("GET".to_owned(), "/api/orders".to_owned());
            let _ = metrics.requests.get_or_create(&RequestLabels { method, route, status: 200 });
            let (method, route) = ("GET".to_owned(), "/api/orders".to_owned());
            let _ = metrics.requests_in_flight.get_or_create(&RouteLabels { method, route });
            metrics.set_lag(0, 0.0, 0.0);
        }),
        program("Consumer", "consumer/src/metrics.rs", "", |registry| {
            let metrics = orderflow_consumer::metrics::Metrics::register(registry);
            let _ = metrics.events.get_or_create(&OutcomeLabel { outcome: OutcomeValue::notified });
            let _ = metrics.rejoins.get_or_create(&RejoinLabel { reason: RejoinReason::topics });
        }),
        program(
            "Operator",
            "operator/src/metrics.rs",
            "`reason` is one of the [reasons](orderflow.md#reasons) of a condition; `namespace` and `name` are those of the \
             OrderFlow.",
            |registry| {
                let metrics = orderflow_operator::metrics::Metrics::new(registry);
                metrics.problem(Reason::Unreachable);
                metrics.ready("shop", "orderflow", true);
                metrics.failed("status");
                let request = [("method", "GET".to_owned()), ("status", "200".to_owned())];
                let _ = metrics.api_requests.get_or_create(&request);
            },
        ),
    ]
}

fn program(name: &'static str, file: &str, note: &'static str, register: impl FnOnce(&mut Registry)) -> Program {
    let mut registry = Registry::default();
    register(&mut registry);
    let dependencies = Dependencies::new(CancellationToken::new());
    dependencies.register("kafka", Need::Always);
    common_metrics::register(&mut registry, &dependencies, "program");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let text = runtime.block_on(async {
        let stage = Supervisor::new(&mut registry, CancellationToken::new()).stage();
        stage.run("pipeline", |_| std::future::pending());
        // Its first turn, in which its counter appears.
        tokio::task::yield_now().await;
        let mut text = String::new();
        encode(&mut text, &registry).expect("a string takes all text");
        text
    });
    Program { name, text, labels: labels(file), note }
}

/// Returns the labels whose values are an enum of the file that defines the metrics.
fn labels(file: &str) -> Vec<Label> {
    let enums = common::enums(file);
    let syntax = common::parse(file);
    let fields = syntax.items.iter().flat_map(|item| match item {
        Item::Struct(item) => match &item.fields {
            Fields::Named(fields) => fields.named.iter().collect(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    });
    let labels = fields.filter_map(|field| {
        let Type::Path(path) = &field.ty else { return None };
        let values = enums.get(&path.path.get_ident()?.to_string())?.clone();
        Some(Label { name: field.ident.as_ref()?.to_string(), values })
    });
    labels.collect()
}

/// A family without a series is not exported, so the page would lack it.
#[test]
fn every_metric_of_a_registry_is_on_the_page() {
    let files = ["producer/src/metrics.rs", "consumer/src/metrics.rs", "operator/src/metrics.rs"];
    for (program, file) in programs().iter().zip(files) {
        let metrics = metrics::parse(&program.text);
        let text = common::read(file);
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: Vec<&str> = product.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        // Every second piece is a literal; one of this form is a metric, a prefix or a label.
        let code = code.join("\n");
        let words = code.split('"').skip(1).step_by(2);
        let words =
            words.filter(|word| !word.is_empty() && word.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()));
        // The values of a label are an array of the product.
        for word in words.filter(|word| !orderflow_producer::metrics::WATCHED_SETTINGS.contains(word)) {
            let is_known = metrics
                .iter()
                .any(|metric| metric.name.contains(word) || metric.labels.iter().any(|label| label == word));
            assert!(is_known, "{file}: {word} has no series in {}", file!());
        }
    }
}
