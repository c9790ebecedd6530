//! Exports spans to a collector: OTLP over HTTP, with protobuf. Users: spans, process.
//!
//! A thread of the SDK keeps ended spans in a queue of 2048, and sends them every 5 seconds or as soon as there are 512
//! (`OTEL_BSP_…` change that). Ending a span never waits. If the collector is away or slow the queue fills, and further
//! spans are dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::trace::{
    Link, Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Builder;
use tracing::{debug, warn};

use connect::tls;

use crate::batch_span::{BatchSpan, Operation};
use crate::trace_parent::TraceParent;

/// How long the collector may take to respond.
const RESPONSE_WAIT: Duration = Duration::from_secs(5);

/// How long a process that ends waits for the collector to take its last spans.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// The longest response that is read, in bytes.
const RESPONSE_LEN_MAX: usize = 64 * 1024;

/// Set once, when a process starts that exports spans.
static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Exports spans from now on, to `<endpoint>/v1/traces`.
///
/// # Errors
/// The endpoint is no URL, or it asks for TLS and this machine trusts no authority. The process should go on without.
pub fn start(endpoint: &str) -> Result<()> {
    let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    // Checked here, because the SDK's own error shows the whole URL, which may hold a password.
    Request::post(&endpoint).body(()).context("it is no URL")?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Collector::new(&endpoint)?)
        .with_endpoint(endpoint)
        .build()
        .context("preparing the export of spans")?;
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
    let tracer = provider.tracer("rocket-rides-log");
    if EXPORT.set(Export { provider, tracer }).is_err() {
        bail!("spans are exported already");
    }
    Ok(())
}

/// The name of this service: that of the program, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says otherwise.
fn resource() -> Resource {
    let program = std::env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    let resource = Resource::builder().build();
    let name = resource.get(&"service.name".into()).map(|name| name.to_string()).unwrap_or_default();
    match program {
        // The SDK's default if it is set nowhere.
        Some(program) if name.is_empty() || name.starts_with("unknown_service") => {
            Resource::builder().with_service_name(program).build()
        }
        _ => resource,
    }
}

pub(crate) fn is_on() -> bool {
    EXPORT.get().is_some()
}

/// A span that has not ended.
pub(crate) struct OpenSpan(Box<opentelemetry_sdk::trace::Span>);

/// Begins a span as a child of the client's. `None` if it is not to be recorded.
pub(crate) fn open(method: &'static str, route: &'static str, client: TraceParent) -> Option<OpenSpan> {
    let tracer = &EXPORT.get()?.tracer;
    let span = tracer
        .span_builder(format!("{method} {route}"))
        .with_kind(SpanKind::Server)
        .with_attributes([KeyValue::new("http.request.method", method), KeyValue::new("http.route", route)]);
    let parent = Context::new().with_remote_span_context(context_of(client));
    let span = span.start_with_context(tracer, &parent);
    // OTEL_TRACES_SAMPLER may leave it out.
    span.is_recording().then(|| OpenSpan(Box::new(span)))
}

impl OpenSpan {
    pub fn traceparent(&self) -> TraceParent {
        let context = self.0.span_context();
        TraceParent {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            flags: context.trace_flags().to_u8(),
        }
    }

    pub fn end(mut self, status: u16) {
        self.0.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            self.0.set_status(Status::error(""));
        }
        self.0.end();
    }
}

/// Exports a span that ends now, with links.
pub(crate) fn export_batch(batch: &BatchSpan<'_>, links: &[TraceParent]) {
    let Some(Export { tracer, .. }) = EXPORT.get() else { return };
    let (kind, name, attribute) = match batch.operation {
        Operation::Publish { stream } => (
            SpanKind::Producer,
            format!("publish {stream}"),
            KeyValue::new("messaging.destination.name", stream.to_owned()),
        ),
        Operation::Fold { consumer } => {
            let attribute = KeyValue::new("messaging.consumer.group.name", consumer.to_owned());
            (SpanKind::Consumer, format!("process {consumer}"), attribute)
        }
    };
    let now = SystemTime::now();
    let mut span = tracer
        .span_builder(name)
        .with_kind(kind)
        .with_start_time(now - batch.elapsed)
        .with_links(links.iter().map(|link| Link::with_context(context_of(*link))).collect())
        .with_attributes([
            attribute,
            KeyValue::new("messaging.batch.message_count", batch.record_count as i64),
            KeyValue::new("rocket_rides.first_offset", batch.first_offset),
        ])
        .start_with_context(tracer, &Context::new());
    span.end_with_timestamp(now);
}

fn context_of(parent: TraceParent) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(parent.trace_id),
        SpanId::from_bytes(parent.span_id),
        TraceFlags::new(parent.flags),
        true,
        TraceState::NONE,
    )
}

/// Sends the spans that are left, and ends the export. It waits for the collector no longer than a moment.
pub fn flush() {
    if let Some(Export { provider, .. }) = EXPORT.get()
        && let Err(error) = provider.shutdown_with_timeout(FLUSH_WAIT)
    {
        debug!(error = %error, "the last spans were not exported");
    }
}

/// The HTTP client for the collector. The SDK's thread blocks in it, on a runtime of its own. Spans are therefore sent while
/// the process's runtime is busy, and after it has ended. Runtime and connection last for one request: there is one every
/// few seconds.
#[derive(Debug)]
struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Whether a lost span was logged since the collector last took spans.
    is_away: AtomicBool,
}

impl Collector {
    fn new(endpoint: &str) -> Result<Self> {
        let tls = if endpoint.starts_with("https:") {
            tls::client_config()?
        } else {
            // It is not used, and must not fail on a machine that trusts no authority.
            ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .context("preparing TLS")?
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth()
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { client, is_away: AtomicBool::new(false) })
    }

    async fn post(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let response = self.client.request(request.map(Full::new)).await.context("sending spans")?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, RESPONSE_LEN_MAX).collect().await.map_err(anyhow::Error::from_boxed)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    /// Logs once when spans begin to be lost, and once when they are taken again.
    fn log_change(&self, response: &Result<Response<Bytes>>) {
        let lost = match response {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answers {}", response.status())),
            Err(error) => Some(format!("{error:#}")),
        };
        let was_away = self.is_away.swap(lost.is_some(), Ordering::Relaxed);
        match lost {
            Some(error) if !was_away => warn!(error, "the collector does not take spans: they are lost"),
            None if was_away => warn!("the collector takes spans again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let posting = async { tokio::time::timeout(RESPONSE_WAIT, self.post(request)).await };
        let response = Builder::new_current_thread().enable_all().build()?.block_on(posting);
        let response = response.unwrap_or_else(|_| Err(anyhow!("no answer within {RESPONSE_WAIT:?}")));
        self.log_change(&response);
        Ok(response?)
    }
}
