//! The way of spans to the collector: a bounded queue, batches, OTLP over HTTP with the TLS settings of the environment.
//! A collector that is down, slow or hangs delays nothing: spans that find the queue full, and batches that it does not
//! take, are dropped and counted.

use std::{
    fmt, fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use async_trait::async_trait;
use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, hyper::HyperClient};
use opentelemetry_otlp::{SpanExporter as Otlp, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, ShouldSample, Span, SpanData, SpanExporter, SpanProcessor,
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::runtime::Handle;

use super::DROPPED;

/// The most spans that wait for the export: those of a full batch of the relay, twice. Unless `OTEL_BSP_MAX_QUEUE_SIZE` says another number.
const QUEUE: usize = 8192;

/// The longest time of one export, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says another, in milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Creates the processor. Call it in the async runtime that is to send the spans.
pub(super) fn processor() -> anyhow::Result<Counting> {
    let queue = number("OTEL_BSP_MAX_QUEUE_SIZE")?.map_or(QUEUE, |most| most as usize);
    let timeout = match number("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")? {
        Some(timeout) => Some(timeout),
        None => number("OTEL_EXPORTER_OTLP_TIMEOUT")?,
    };
    let timeout = timeout.map_or(TIMEOUT, Duration::from_millis);
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls()?).https_or_http().enable_http1();
    let client = HyperClient::new(connector.wrap_connector(http), timeout, None);
    let client = OnRuntime { client, runtime: Handle::current() };
    for name in ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
        require_endpoint(name)?;
    }
    for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        let protocol = text(name).unwrap_or_default();
        ensure!(["", "http/protobuf"].contains(&protocol.as_str()), "{name}: only http/protobuf is supported");
    }
    // Its errors may show the whole address, or a header.
    let exporter = Otlp::builder().with_http().with_http_client(client).build();
    let exporter = exporter.map_err(|_| anyhow!("OTEL_EXPORTER_OTLP_*: no exporter can be made of these variables"))?;
    let waiting = Arc::new(AtomicUsize::new(0));
    let exporter = CountingExporter { exporter, waiting: waiting.clone(), is_failing: AtomicBool::new(false) };
    let config = BatchConfigBuilder::default().with_max_queue_size(queue).build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    Ok(Counting { processor, waiting, queue })
}

/// Returns the sampler that the environment asks for.
pub(super) fn sampler() -> anyhow::Result<Box<dyn ShouldSample>> {
    let name = text("OTEL_TRACES_SAMPLER").unwrap_or_else(|| "parentbased_always_on".to_owned());
    let ratio = || {
        let ratio = text("OTEL_TRACES_SAMPLER_ARG").unwrap_or_else(|| "1".to_owned());
        let number = ratio.parse::<f64>().ok().filter(|number| (0.0..=1.0).contains(number));
        number.with_context(|| format!("OTEL_TRACES_SAMPLER_ARG: {ratio:?} is not a number from 0 to 1"))
    };
    let root = match name.trim_start_matches("parentbased_") {
        "always_on" => Sampler::AlwaysOn,
        "always_off" => Sampler::AlwaysOff,
        "traceidratio" => Sampler::TraceIdRatioBased(ratio()?),
        _ => bail!(
            "OTEL_TRACES_SAMPLER: {name:?} is not always_on, always_off or traceidratio, with or without parentbased_ \
             before it"
        ),
    };
    let is_parent_based = name.starts_with("parentbased_");
    Ok(if is_parent_based { Box::new(Sampler::ParentBased(Box::new(root))) } else { Box::new(root) })
}

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// Requires that an endpoint, if it is set, can be used. The error does not show it, since it may have a password.
fn require_endpoint(name: &str) -> anyhow::Result<()> {
    let Some(endpoint) = text(name) else { return Ok(()) };
    let address: Option<Uri> = endpoint.parse().ok();
    let is_usable = address.is_some_and(|address| {
        let authority = address.authority().map(http::uri::Authority::as_str);
        matches!(address.scheme_str(), Some("http" | "https"))
            && authority.is_some_and(|authority| !authority.contains('@'))
            && address.query().is_none()
    });
    ensure!(
        is_usable,
        "{name}: must be an http:// or https:// address without user and query; \
         credentials belong into OTEL_EXPORTER_OTLP_HEADERS"
    );
    Ok(())
}

fn number(name: &str) -> anyhow::Result<Option<u64>> {
    let Some(text) = text(name) else { return Ok(None) };
    let number = text.parse().ok().filter(|number| *number > 0);
    Ok(Some(number.with_context(|| format!("{name}: {text:?} is not a number above 0"))?))
}

/// Returns the TLS configuration: the authorities of the system or of `OTEL_EXPORTER_OTLP_CERTIFICATE`, and the client's
/// own certificate, if one is given.
fn tls() -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    match file("CERTIFICATE") {
        Some((name, path)) => {
            for authority in certificates(name, &path)? {
                roots.add(authority).with_context(|| format!("{name}: {}", path.display()))?;
            }
        }
        None => {
            // A machine without certificates can still reach a collector over http.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choose the versions of TLS")?
        .with_root_certificates(roots);
    match (file("CLIENT_CERTIFICATE"), file("CLIENT_KEY")) {
        (Some((name, chain)), Some((key_name, key))) => {
            let chain = certificates(name, &chain)?;
            let key = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("{key_name}: {}", key.display()))?;
            config.with_client_auth_cert(chain, key).with_context(|| format!("{name} and {key_name}"))
        }
        (None, None) => Ok(config.with_no_client_auth()),
        (Some((name, _)), None) => anyhow::bail!("{name} is set without OTEL_EXPORTER_OTLP_CLIENT_KEY"),
        (None, Some((name, _))) => anyhow::bail!("{name} is set without OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
    }
}

/// Returns the name and the value of a variable with a file; the one for traces alone precedes the general one.
fn file(what: &str) -> Option<(&'static str, PathBuf)> {
    const NAMES: [&str; 6] = [
        "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    ];
    let is_named = |name: &&str| {
        let rest = name.trim_start_matches("OTEL_EXPORTER_OTLP_");
        rest.trim_start_matches("TRACES_") == what
    };
    NAMES.into_iter().filter(is_named).find_map(|name| {
        let path = std::env::var_os(name).filter(|path| !path.is_empty())?;
        Some((name, PathBuf::from(path)))
    })
}

fn certificates(name: &str, path: &PathBuf) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || format!("{name}: {}", path.display());
    // Read first: the error of the parser does not say that a file is missing.
    let pem = fs::read(path).with_context(read)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().with_context(read)?;
    ensure!(!found.is_empty(), "{name}: {} has no certificate", path.display());
    Ok(found)
}

/// A client that runs its requests in the async runtime. The thread that exports has none of its own.
struct OnRuntime {
    client: HyperClient<HttpsConnector<HttpConnector>>,
    runtime: Handle,
}

impl fmt::Debug for OnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnRuntime")
    }
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Drops and counts spans while the queue is full. The SDK's processor drops them as well, but only logs their number.
#[derive(Debug)]
pub(super) struct Counting {
    processor: BatchSpanProcessor,
    /// Spans that the exporter has not taken yet.
    waiting: Arc<AtomicUsize>,
    queue: usize,
}

impl SpanProcessor for Counting {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.processor.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.queue {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.processor.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}

/// Counts the spans of exports that failed.
#[derive(Debug)]
struct CountingExporter {
    exporter: Otlp,
    waiting: Arc<AtomicUsize>,
    /// True since an export failed, until one succeeds.
    is_failing: AtomicBool,
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let exported = self.exporter.export(batch).await;
        if let Err(error) = &exported {
            DROPPED.fetch_add(count as u64, Ordering::Relaxed);
            if !self.is_failing.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "the collector takes no spans: they are dropped and counted until it does");
            }
        } else if self.is_failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the collector takes spans again");
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
