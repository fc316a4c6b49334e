//! An OpenTelemetry Collector on loopback, which receives traces and writes their spans to a file.
//!
//! Promises the same ports across stop, kill and start, and that spans in the file stay there. The collector
//! acknowledges a span up to [`FLUSH_INTERVAL`] before the span is in the file; a kill in between loses it. A paused
//! collector accepts connections and answers nothing. When it resumes, it also receives what clients sent in the
//! meantime.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Deserializer, Value, json};
use tokio::net::TcpStream;

use crate::{
    certificates::Pair,
    folder, http, port,
    process::{Launch, Process},
    service::{Service, wait_until_answered},
    tools,
};

/// Longest time between an acknowledged span and its line in the file.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// The longest a start takes: 0.1 s on an idle machine.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// The start of each message in the file. Within a JSON string its quotes would be escaped, so it is nowhere else.
const MESSAGE_START: &str = r#"{"resourceSpans":"#;

/// The status code of a failed span.
const ERROR: u8 = 2;

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    process: Process,
    http_port: u16,
    file: PathBuf,
    is_secured: bool,
}

impl Collector {
    /// Starts `name` below `folder` on free ports.
    pub async fn start(folder: &Path, name: &str) -> Result<Self> {
        Self::start_with(folder, name, None).await
    }

    /// Starts a collector that takes OTLP over HTTP with TLS only, of clients with a certificate of the same authority.
    pub async fn start_secured(folder: &Path, name: &str, identity: &Pair) -> Result<Self> {
        Self::start_with(folder, name, Some(identity)).await
    }

    async fn start_with(folder: &Path, name: &str, identity: Option<&Pair>) -> Result<Self> {
        let files = folder::data(folder, name)?;
        folder::create(&files)?;
        let (http_port, file) = (port::free()?, files.join("traces.jsonl"));
        let settings = files.join("collector.yaml");
        let mut tls = Value::Null;
        if let Some(identity) = identity {
            let [certificate, key, authority] = ["server.pem", "server.key", "ca.pem"].map(|name| files.join(name));
            identity.write(&certificate, &key)?;
            folder::write_private(&authority, &identity.authority)?;
            tls = json!({ "cert_file": certificate, "key_file": key, "client_ca_file": authority });
        }
        std::fs::write(&settings, configuration(http_port, &file, &tls))
            .with_context(|| format!("write {}", settings.display()))?;
        let launch =
            Launch::new(name, tools::collector()?, folder::log(folder, name)?).argument("--config").argument(settings);
        let collector = Self { process: Process::start(launch)?, http_port, file, is_secured: identity.is_some() };
        collector.wait_until_up().await?;
        Ok(collector)
    }

    /// Returns the endpoint for OTLP over HTTP, without a path.
    pub fn http_endpoint(&self) -> String {
        let scheme = if self.is_secured { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.http_port)
    }

    /// Returns the spans in the file, in the order in which they arrived.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let bytes = std::fs::read(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        // A write that a kill cut off may end within a character.
        spans(&String::from_utf8_lossy(&bytes)).with_context(|| format!("parse {}", self.file.display()))
    }
}

impl Service for Collector {
    fn process(&self) -> &Process {
        &self.process
    }

    fn wait_until_up(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(wait_until_answered(&self.process, "accept traces", START_DEADLINE, || async {
            if self.is_secured {
                TcpStream::connect(("127.0.0.1", self.http_port)).await.context("connect")?;
                return Ok(());
            }
            // A request without spans leaves nothing in the file.
            let request = http::client().post(format!("{}/v1/traces", self.http_endpoint())).json(&json!({}));
            request.send().await.context("send no spans")?.error_for_status().context("send no spans")?;
            Ok(())
        }))
    }
}

/// A span that the collector received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// The `span_id` of its parent, unless it is the root of its trace.
    pub parent_span_id: Option<String>,
    pub name: String,
    pub kind: Kind,
    /// The resource's `service.name`, or an empty text.
    pub service: String,
    pub resource: BTreeMap<String, String>,
    pub attributes: BTreeMap<String, String>,
    /// Trace id and span id of each linked span.
    pub links: Vec<(String, String)>,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// The description of its error, if its status is an error; it may be empty.
    pub error: Option<String>,
}

/// The role of a span in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "u8")]
pub enum Kind {
    #[default]
    Unspecified,
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

impl From<u8> for Kind {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Internal,
            2 => Self::Server,
            3 => Self::Client,
            4 => Self::Producer,
            5 => Self::Consumer,
            _ => Self::Unspecified,
        }
    }
}

/// Returns the collector's configuration. It is JSON, which is YAML as well, so that any path is quoted correctly.
fn configuration(http_port: u16, file: &Path, tls: &Value) -> String {
    let mut configuration = json!({
        "receivers": { "otlp": { "protocols": {
            "http": { "endpoint": format!("127.0.0.1:{http_port}") },
        } } },
        "exporters": { "file": {
            "path": file,
            // Otherwise a start empties the file.
            "append": true,
            "flush_interval": format!("{}ms", FLUSH_INTERVAL.as_millis()),
        } },
        "service": { "pipelines": { "traces": { "receivers": ["otlp"], "exporters": ["file"] } } },
    });
    if !tls.is_null() {
        configuration["receivers"]["otlp"]["protocols"]["http"]["tls"] = tls.clone();
    }
    format!("{configuration:#}\n")
}

/// Returns the spans of the messages in `text`, which has one a line. Skips a message that was not written to its end:
/// the last one, while the collector writes it, or one that a kill cut off. The next message follows it on its line.
fn spans(text: &str) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for rest in text.split(MESSAGE_START).skip(1) {
        let line = format!("{MESSAGE_START}{rest}");
        // Ignores what follows the message: a second one may have been cut off within its first characters.
        match Message::deserialize(&mut Deserializer::from_str(&line)) {
            Ok(message) => {
                for of_resource in message.resource_spans {
                    of_resource.append_to(&mut spans)?;
                }
            }
            Err(error) => ensure!(!line.ends_with('\n'), "{error} in {line}"),
        }
    }
    Ok(spans)
}

/// A message in OTLP's JSON encoding. Fields that no test needs are left out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans {
    #[serde(default)]
    resource: Resource,
    #[serde(default)]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Default, Deserialize)]
struct Resource {
    #[serde(default)]
    attributes: Vec<Attribute>,
}

#[derive(Deserialize)]
struct ScopeSpans {
    #[serde(default)]
    spans: Vec<RawSpan>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSpan {
    trace_id: String,
    span_id: String,
    #[serde(default)]
    parent_span_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    kind: Kind,
    /// A 64-bit number, which is a text in this encoding.
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    #[serde(default)]
    attributes: Vec<Attribute>,
    #[serde(default)]
    links: Vec<Link>,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Attribute {
    key: String,
    /// An object whose only key names the type, such as `stringValue`.
    #[serde(default)]
    value: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    trace_id: String,
    span_id: String,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: u8,
    #[serde(default)]
    message: String,
}

impl ResourceSpans {
    fn append_to(self, spans: &mut Vec<Span>) -> Result<()> {
        let resource = texts(self.resource.attributes);
        let service = resource.get("service.name").cloned().unwrap_or_default();
        for span in self.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                start: span.start_time_unix_nano.parse::<u64>().context("parse the start of a span")?,
                end: span.end_time_unix_nano.parse::<u64>().context("parse the end of a span")?,
                trace_id: span.trace_id,
                span_id: span.span_id,
                parent_span_id: Some(span.parent_span_id).filter(|id| !id.is_empty()),
                name: span.name,
                kind: span.kind,
                service: service.clone(),
                resource: resource.clone(),
                attributes: texts(span.attributes),
                links: span.links.into_iter().map(|link| (link.trace_id, link.span_id)).collect(),
                error: (span.status.code == ERROR).then_some(span.status.message),
            });
        }
        Ok(())
    }
}

fn texts(attributes: Vec<Attribute>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|attribute| (attribute.key, text(&attribute.value))).collect()
}

/// Returns a value as text; a list or a map as its JSON.
fn text(value: &Value) -> String {
    match value.as_object().and_then(|types| types.values().next()) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two spans as the collector writes them, the second a failed child of the first.
    const LINE: &str = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"producer"}},{"key":"process.pid","value":{"intValue":"42"}}]},"scopeSpans":[{"scope":{"name":"s"},"spans":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","name":"POST /api/orders","kind":2,"startTimeUnixNano":"1544712660000000000","endTimeUnixNano":"1544712661000000000","attributes":[{"key":"http.response.status_code","value":{"intValue":"201"}},{"key":"ratio","value":{"doubleValue":0.5}},{"key":"ok","value":{"boolValue":true}},{"key":"shards","value":{"arrayValue":{"values":[{"stringValue":"a"}]}}},{"key":"nothing","value":{}},{"key":"quote","value":{"stringValue":"{\"resourceSpans\":["}}],"status":{}},{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b175","parentSpanId":"eee19b7ec3c1b174","name":"insert","kind":3,"startTimeUnixNano":"1544712660100000000","endTimeUnixNano":"1544712660200000000","events":[{"timeUnixNano":"1544712660150000000","name":"exception"}],"links":[{"traceId":"5b8efff798038103d269b633813fc60d","spanId":"eee19b7ec3c1b176"}],"status":{"message":"connection refused","code":2}}]}]}]}"#;

    #[test]
    fn spans_have_their_resource_attributes_links_and_error() {
        let [root, child]: [Span; 2] = spans(&format!("{LINE}\n")).expect("parse").try_into().expect("two spans");
        let texts = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        let expected = Span {
            trace_id: "5b8efff798038103d269b633813fc60c".to_owned(),
            span_id: "eee19b7ec3c1b174".to_owned(),
            parent_span_id: None,
            name: "POST /api/orders".to_owned(),
            kind: Kind::Server,
            service: "producer".to_owned(),
            resource: texts(&[("service.name", "producer"), ("process.pid", "42")]),
            attributes: texts(&[
                ("http.response.status_code", "201"),
                ("ratio", "0.5"),
                ("ok", "true"),
                ("shards", r#"{"values":[{"stringValue":"a"}]}"#),
                ("nothing", ""),
                ("quote", r#"{"resourceSpans":["#),
            ]),
            links: Vec::new(),
            start: 1_544_712_660_000_000_000,
            end: 1_544_712_661_000_000_000,
            error: None,
        };
        assert_eq!(root, expected);
        assert_eq!(child.kind, Kind::Client);
        assert_eq!(child.parent_span_id, Some(root.span_id));
        let linked = ("5b8efff798038103d269b633813fc60d".to_owned(), "eee19b7ec3c1b176".to_owned());
        assert_eq!(child.links, [linked]);
        assert_eq!(child.error.as_deref(), Some("connection refused"));
    }

    #[test]
    fn a_message_that_was_cut_off_is_skipped_and_its_neighbours_are_kept() {
        let names =
            |text: &str| -> Vec<String> { spans(text).expect("parse").into_iter().map(|span| span.name).collect() };
        let both = ["POST /api/orders", "insert"];
        for length in 0..LINE.len() {
            let cut = &LINE[..length];
            assert_eq!(names(&format!("{LINE}\n{cut}")), both, "{cut}");
            assert_eq!(names(&format!("{cut}{LINE}\n")), both, "{cut}");
        }
        assert_eq!(names(LINE), both, "a kill before the end of the line");
        assert_eq!(names(&format!("{LINE}{LINE}\n")).len(), 4);
    }

    #[test]
    fn a_broken_line_is_an_error() {
        let error = spans("{\"resourceSpans\":[}\n").expect_err("no JSON").to_string();
        assert!(error.contains(r#"{"resourceSpans":[}"#), "{error}");
    }
}
