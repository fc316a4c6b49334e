//! Traces of orders, sent by OTLP over HTTP. Off, and without any cost, unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//!
//! The decision whether an order is recorded is made once, by the sampler, for the span of its request. It is stored with
//! the order (as the flags of its `traceparent`) and holds for every later step, in whatever process. Steps of an order
//! that is not recorded cost one look at that flag.

mod export;
pub mod messaging;

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};
pub use opentelemetry::{
    Context, Key, KeyValue,
    trace::{FutureExt, SpanContext, SpanKind},
};
use opentelemetry::{
    InstrumentationScope,
    trace::{
        Link, Span as _, SpanBuilder, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer as _,
        TracerProvider,
    },
};
use opentelemetry_sdk::{
    Resource,
    trace::{SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample},
};

/// The longest wait at the end of the process for the collector to take the last spans.
const FLUSH: Duration = Duration::from_secs(1);

/// The most links of one span, which is that of a batch: an order beyond them links to the batch, but not back.
const MOST_LINKS: u32 = 512;

#[derive(Args, Clone, Copy, Debug)]
#[group(skip)]
#[command(next_help_heading = "Traces")]
pub struct Settings {
    /// How a trace continues after an order was stored (outbox, Kafka, receipt): in the same trace, or in traces that
    /// link to it
    #[arg(long, env = "OTEL_ASYNC", value_enum, default_value = "parent")]
    pub otel_async: Async,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Async {
    Parent,
    Links,
}

/// Sends the spans that have ended, at the end of the process. Dropping it waits for at most [`FLUSH`].
pub struct Flush(Option<SdkTracerProvider>);

struct Traces {
    tracer: SdkTracer,
    continues_by_links: bool,
}

static TRACES: OnceLock<Traces> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Starts the export of spans if an endpoint is configured, for the program named `service` unless `OTEL_SERVICE_NAME`
/// names it. Call it in the async runtime, which sends them; drop the guard before the runtime.
pub fn start(settings: Settings, service: &'static str) -> anyhow::Result<Flush> {
    if !is_configured(|name| std::env::var(name).ok()) {
        return Ok(Flush(None));
    }
    let sampler = export::sampler()?;
    let provider = SdkTracerProvider::builder()
        .with_sampler(FollowLinks(sampler))
        .with_max_links_per_span(MOST_LINKS)
        .with_resource(resource(service))
        .with_span_processor(export::processor()?)
        .build();
    let tracer = provider.tracer_with_scope(
        InstrumentationScope::builder("orderflow")
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(messaging::SCHEMA_URL)
            .build(),
    );
    let _ = TRACES.set(Traces { tracer, continues_by_links: settings.otel_async == Async::Links });
    Ok(Flush(Some(provider)))
}

/// Returns the resource that the environment describes, with what it leaves out.
fn resource(service: &'static str) -> Resource {
    let given = Resource::builder().build();
    let has = |key: &'static str| {
        // The SDK's own default for a name that is not given.
        given.get(&Key::from_static_str(key)).is_some_and(|value| !value.as_str().starts_with("unknown_service"))
    };
    let defaults = [("service.name", service), ("service.version", env!("CARGO_PKG_VERSION"))];
    let missing = defaults.into_iter().filter(|(key, _)| !has(key));
    Resource::builder().with_attributes(missing.map(|(key, value)| KeyValue::new(key, value))).build()
}

/// Returns whether the environment asks for traces, as the specification of the OpenTelemetry SDK defines it.
fn is_configured(variable: impl Fn(&str) -> Option<String>) -> bool {
    let is = |name: &str, value: &str| variable(name).is_some_and(|text| text.eq_ignore_ascii_case(value));
    let has = |name: &str| variable(name).is_some_and(|text| !text.is_empty());
    (has("OTEL_EXPORTER_OTLP_ENDPOINT") || has("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
        && !is("OTEL_SDK_DISABLED", "true")
        && !is("OTEL_TRACES_EXPORTER", "none")
}

impl Drop for Flush {
    fn drop(&mut self) {
        if let Some(provider) = &self.0 {
            // The collector may be down. Its spans are lost then, and counted.
            let _ = provider.shutdown_with_timeout(FLUSH);
        }
    }
}

/// Returns true if traces are configured.
pub fn is_on() -> bool {
    TRACES.get().is_some()
}

/// Returns the number of recorded spans that did not reach the collector, since the start of the process.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Reads a W3C `traceparent` of version 00. Returns `None` for any other text.
pub fn parse(traceparent: &str) -> Option<SpanContext> {
    let lengths = [2, 32, 16, 2];
    let mut parts = traceparent.split('-');
    let mut next = |position: usize| {
        let part = parts.next().filter(|part| part.len() == lengths[position])?;
        part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some(part)
    };
    let (version, trace_id, span_id, flags) = (next(0)?, next(1)?, next(2)?, next(3)?);
    if version != "00" || parts.next().is_some() {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace_id).ok()?,
        SpanId::from_hex(span_id).ok()?,
        // Of the flags, only this one is known; W3C asks not to pass on the others.
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// Returns the `traceparent` of a context. `tracestate` and baggage end here: the outbox has room for 55 characters.
pub fn format(context: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
}

/// Reads the `traceparent` of an order whose steps are recorded. `None` if they are not, or if traces are off.
pub fn recorded(traceparent: Option<&str>) -> Option<SpanContext> {
    TRACES.get()?;
    // The flag is the last bit of the last digit; most orders are not recorded.
    let is_odd = |digit: char| digit.to_digit(16).is_some_and(|digit| digit % 2 == 1);
    let traceparent = traceparent.filter(|text| text.ends_with(is_odd))?;
    parse(traceparent).filter(SpanContext::is_sampled)
}

/// A span that is recorded. It ends when it is dropped.
pub struct Span(opentelemetry_sdk::trace::Span);

/// A span to be started.
pub struct Builder {
    builder: SpanBuilder,
    parent: Option<SpanContext>,
    links: Vec<Link>,
}

impl Builder {
    /// Starts to describe the span of a request, with its client's context as the parent.
    pub fn of_request(name: String, client: Option<SpanContext>) -> Self {
        Self { builder: SpanBuilder::from_name(name).with_kind(SpanKind::Server), parent: client, links: Vec::new() }
    }

    /// Starts to describe a step within the process of `order`'s context.
    pub fn step(name: String, kind: SpanKind, order: SpanContext) -> Self {
        Self { builder: SpanBuilder::from_name(name).with_kind(kind), parent: Some(order), links: Vec::new() }
    }

    /// Starts to describe a step after the order left its process: a child of the order's context, or with
    /// `OTEL_ASYNC=links` the first span of a trace that links to it.
    pub fn continuation(name: String, kind: SpanKind, order: SpanContext) -> Self {
        let by_links = TRACES.get().is_some_and(|traces| traces.continues_by_links);
        let (parent, links) = if by_links { (None, vec![link(order)]) } else { (Some(order), Vec::new()) };
        Self { builder: SpanBuilder::from_name(name).with_kind(kind), parent, links }
    }

    /// Starts to describe a step that several orders share: it is in the trace of the first, and links to each.
    pub fn batch(name: String, kind: SpanKind, orders: &[SpanContext]) -> Self {
        let links = orders.iter().cloned().map(link).collect();
        Self { builder: SpanBuilder::from_name(name).with_kind(kind), parent: orders.first().cloned(), links }
    }

    /// Starts to describe a step that several orders share after they left their processes.
    pub fn batch_continuation(name: String, kind: SpanKind, orders: &[SpanContext]) -> Self {
        let by_links = TRACES.get().is_some_and(|traces| traces.continues_by_links);
        let batch = Self::batch(name, kind, orders);
        if by_links { Self { parent: None, ..batch } } else { batch }
    }

    #[must_use]
    pub fn started(mut self, at: SystemTime) -> Self {
        self.builder = self.builder.with_start_time(at);
        self
    }

    #[must_use]
    pub fn linked(mut self, context: SpanContext) -> Self {
        self.links.push(link(context));
        self
    }

    /// Starts the span. `None` if traces are off.
    pub fn start(self) -> Option<Span> {
        let traces = TRACES.get()?;
        let context = match self.parent {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        Some(Span(traces.tracer.build_with_context(self.builder.with_links(self.links), &context)))
    }
}

fn link(context: SpanContext) -> Link {
    Link::new(context, Vec::new(), 0)
}

impl Span {
    pub fn context(&self) -> &SpanContext {
        self.0.span_context()
    }

    /// Returns false if the sampler does not record it: then attributes are not worth their cost.
    pub fn is_recorded(&self) -> bool {
        self.0.is_recording()
    }

    pub fn set(&mut self, attributes: impl IntoIterator<Item = KeyValue>) {
        self.0.set_attributes(attributes);
    }

    /// Marks the span as failed. `kind` is one of few words, `reason` has no secret.
    pub fn fail(&mut self, kind: &'static str, reason: impl Into<String>) {
        self.0.set_attribute(KeyValue::new("error.type", kind));
        self.0.set_status(Status::error(reason.into()));
    }
}

/// Returns a context in which log lines have the ids of this span.
pub fn log_context(span: &SpanContext) -> Context {
    Context::new().with_remote_span_context(span.clone())
}

/// Returns the ids of the current span as hexadecimal text, for a log line.
pub fn current_ids() -> Option<(TraceId, SpanId)> {
    TRACES.get()?;
    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| (span.trace_id(), span.span_id()))
    })
}

/// Returns the current trace as the exemplar of a latency, if it is recorded.
pub fn exemplar() -> Option<crate::metrics::Exemplar> {
    TRACES.get()?;
    Context::map_current(|context| {
        let span = context.span();
        let span = span.span_context();
        span.is_sampled().then(|| [("trace_id", span.trace_id().to_string())])
    })
}

/// Samples a span without a parent as its links are sampled, so that a trace which continues by links is whole. Anything
/// else is decided by `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Debug)]
struct FollowLinks(Box<dyn ShouldSample>);

impl ShouldSample for FollowLinks {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let has_parent = parent.is_some_and(|parent| parent.span().span_context().is_valid());
        if !has_parent && links.iter().any(|link| link.span_context.is_sampled()) {
            return SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state: TraceState::NONE,
            };
        }
        self.0.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_and_written_unchanged() {
        let context = parse(TRACEPARENT).unwrap();
        assert!(context.is_sampled());
        assert_eq!(format(&context), TRACEPARENT);
        let unsampled = TRACEPARENT.replace("-01", "-00");
        assert_eq!(format(&parse(&unsampled).unwrap()), unsampled);
        // Flags that version 00 does not know are not passed on.
        for flags in ["-ff", "-0b", "-d1"] {
            assert_eq!(format(&parse(&TRACEPARENT.replace("-01", flags)).unwrap()), TRACEPARENT);
        }
    }

    #[test]
    fn a_malformed_traceparent_is_ignored() {
        for text in [
            "",
            "00",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-011",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn traces_are_off_unless_an_endpoint_is_set() {
        let configured = |variables: &[(&str, &str)]| {
            is_configured(|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        assert!(!configured(&[]));
        assert!(!configured(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]));
        assert!(configured(&[endpoint]));
        assert!(configured(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318/v1/traces")]));
        assert!(!configured(&[endpoint, ("OTEL_SDK_DISABLED", "true")]));
        assert!(!configured(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]));
    }

    #[test]
    fn nothing_is_recorded_while_traces_are_off() {
        assert!(recorded(Some(TRACEPARENT)).is_none());
        assert!(Builder::of_request("GET".to_owned(), None).start().is_none());
    }
}
