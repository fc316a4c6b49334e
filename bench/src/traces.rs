//! The cost of traces: the producer's CPU per order without them, and with every tenth order recorded and sent to a
//! collector, in turns.

use anyhow::Result;
use orderflow_testbed::Collector;

use crate::{
    Effort,
    backing::{ALL, Backing},
    handler,
    report::Report,
    series::Series,
};

pub async fn compare(backing: &Backing, effort: Effort, report: &mut Report) -> Result<()> {
    report.section(
        "Cost of traces",
        "CPU of the producer per order, from the request to its receipt, at 3,000 orders/s over 64 connections (open loop): \
         without traces, and with every tenth order recorded and sent to an OpenTelemetry Collector on this machine.",
    );
    let collector = Collector::start(backing.folder(), "collector").await?;
    let endpoint = collector.http_endpoint();
    let traced = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.1"),
    ];
    let (mut without, mut with) = <(Series, Series)>::default();
    for _ in 0..effort.rounds {
        without.push(handler::measure_producer(backing, ALL, &[], effort.length).await?);
        with.push(handler::measure_producer(backing, ALL, &traced, effort.length).await?);
    }
    report.head(&["", "µs per order", "over that without traces"]);
    report.row(["without traces".to_owned(), without.to_string(), String::new()]);
    report.row(["10 % of the orders recorded".to_owned(), with.to_string(), with.over(&without).to_string()]);
    Ok(())
}
