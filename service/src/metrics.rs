//! The metrics that every process has: dependencies, panics, dropped lines and spans, errors of Kafka's client, the build,
//! and the process itself. Also the buckets of all latencies.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, family::MetricConstructor, gauge::ConstGauge, histogram::Histogram},
    registry::Registry,
};

use crate::{Dependencies, dependency::State, telemetry};

/// The buckets of latencies, in seconds. Objectives are set at such round numbers.
pub const LATENCIES: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The label of a trace in which a value was measured.
pub type Exemplar = [(&'static str, String); 1];

/// Makes histograms of latencies, for families.
#[derive(Clone)]
pub struct Seconds;

impl MetricConstructor<Histogram> for Seconds {
    fn new_metric(&self) -> Histogram {
        Histogram::new(LATENCIES)
    }
}

/// Registers the metrics that every process has, beside those of its supervisor.
pub fn register(registry: &mut Registry, dependencies: &Dependencies, program: &'static str) {
    registry.register_collector(Box::new(Up(dependencies.clone())));
    registry.register_collector(Box::new(Panics));
    registry.register_collector(Box::new(DroppedLines));
    registry.register_collector(Box::new(Build(program)));
    registry.register_collector(Box::new(Process));
    #[cfg(feature = "kafka")]
    registry.register_collector(Box::new(KafkaErrors));
    #[cfg(feature = "traces")]
    registry.register_collector(Box::new(DroppedSpans));
}

/// A collector for the number of panics in the process.
#[derive(Debug)]
struct Panics;

impl Collector for Panics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "Panics, each of which ended one request, one reconcile or one run of a task";
        let counter = ConstCounter::new(telemetry::panics());
        let encoder = encoder.encode_descriptor("orderflow_panics", help, None, MetricType::Counter)?;
        counter.encode(encoder)
    }
}

/// A collector for the number of log lines that were dropped.
#[derive(Debug)]
struct DroppedLines;

impl Collector for DroppedLines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "Log lines that were dropped: rate_limit (one place in the code logged more than 10 warnings or errors per second, \
                    after 100 at once) or slow_output (stdout did not take them)";
        let mut family = encoder.encode_descriptor("orderflow_log_lines_dropped", help, None, MetricType::Counter)?;
        for (reason, count) in telemetry::dropped_lines() {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

/// A collector for the state of each dependency, as in `/readyz`.
#[derive(Debug)]
struct Up(Dependencies);

impl Collector for Up {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "1 if the dependency is up, as in /readyz: a shard by its name, kafka, s3, the Lease or a watch";
        let mut family = encoder.encode_descriptor("orderflow_dependency_up", help, None, MetricType::Gauge)?;
        for (name, state) in self.0.readiness().dependencies {
            let up = i64::from(state == State::Up);
            ConstGauge::new(up).encode(family.encode_family(&[("dependency", name)])?)?;
        }
        Ok(())
    }
}

/// A collector for the version of the program.
#[derive(Debug)]
struct Build(&'static str);

impl Collector for Build {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "1, with the program and its version as labels";
        let mut family = encoder.encode_descriptor("orderflow_build_info", help, None, MetricType::Gauge)?;
        let labels = [("program", self.0), ("version", env!("CARGO_PKG_VERSION"))];
        ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)
    }
}

/// A collector for what the kernel knows of the process, under the names that all Prometheus clients use.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let process = metrics_process::collector::collect();
        if let Some(seconds) = process.cpu_seconds_total {
            let help = "CPU time of the process, of users and of the kernel";
            let encoder = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(encoder)?;
        }
        let gauges = [
            ("process_resident_memory_bytes", "Memory of the process that is in RAM", process.resident_memory_bytes),
            ("process_open_fds", "Open file descriptors", process.open_fds),
            ("process_max_fds", "Most file descriptors that may be open", process.max_fds),
            ("process_threads", "Threads of the process", process.threads),
            ("process_start_time_seconds", "Unix time of the start of the process", process.start_time_seconds),
        ];
        for (name, help, value) in gauges {
            let Some(value) = value else { continue };
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value as i64).encode(encoder)?;
        }
        Ok(())
    }
}

/// A collector for the errors that librdkafka reported.
#[cfg(feature = "kafka")]
#[derive(Debug)]
struct KafkaErrors;

#[cfg(feature = "kafka")]
impl Collector for KafkaErrors {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help =
            "Errors that the Kafka client reported, by librdkafka's name of the code; it repeats what can be repeated";
        let mut family = encoder.encode_descriptor("orderflow_kafka_errors", help, None, MetricType::Counter)?;
        for (code, count) in crate::kafka::error_counts() {
            ConstCounter::new(count).encode(family.encode_family(&[("code", code)])?)?;
        }
        Ok(())
    }
}

/// A collector for the recorded spans that were lost.
#[cfg(feature = "traces")]
#[derive(Debug)]
struct DroppedSpans;

#[cfg(feature = "traces")]
impl Collector for DroppedSpans {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "Recorded spans that the collector did not take, or that found the queue to it full";
        let counter = ConstCounter::new(crate::traces::dropped());
        let encoder = encoder.encode_descriptor("orderflow_spans_dropped", help, None, MetricType::Counter)?;
        counter.encode(encoder)
    }
}
