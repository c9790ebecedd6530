//! Spans, and their way to a collector: OTLP over HTTP, with protobuf. Users: spans, telemetry.
//!
//! A thread of the SDK collects what has ended, in a queue of 2048 spans, and sends it every 5 seconds or when there are 512
//! (`OTEL_BSP_…` change that). Whoever ends a span waits for nobody: if the collector is away or slow the queue fills, and
//! what comes then is dropped.

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

use crate::TraceParent;
use crate::spans::{Batch, Work};
use connect::tls;

/// How long the collector has for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How long a process that ends waits for its last spans to be taken.
const FLUSH_WAIT: Duration = Duration::from_secs(2);

/// The longest answer that is read, in bytes.
const ANSWER_LEN_MAX: usize = 64 * 1024;

/// Set once, at the start of a process that exports.
static EXPORT: OnceLock<Export> = OnceLock::new();

struct Export {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Exports from now on, to `<endpoint>/v1/traces`.
///
/// # Errors
/// It cannot: the endpoint is no URL, or TLS is asked for and nobody is trusted.
pub fn start(endpoint: &str) -> Result<()> {
    let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    // The SDK's own complaint would show all of it, and there may be a password in it.
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

/// Who we are: the name of the program, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says otherwise.
fn resource() -> Resource {
    let program = std::env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    let resource = Resource::builder().build();
    let name = resource.get(&"service.name".into()).map(|name| name.to_string()).unwrap_or_default();
    match program {
        // What the SDK says when nobody has set it.
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

/// A span of ours, as a part of the client's.
pub(crate) fn open(method: &'static str, route: &'static str, client: TraceParent) -> Option<OpenSpan> {
    let tracer = &EXPORT.get()?.tracer;
    let span = tracer
        .span_builder(format!("{method} {route}"))
        .with_kind(SpanKind::Server)
        .with_attributes([KeyValue::new("http.request.method", method), KeyValue::new("http.route", route)]);
    let parent = Context::new().with_remote_span_context(context_of(client));
    let span = span.start_with_context(tracer, &parent);
    // Not if OTEL_TRACES_SAMPLER leaves it out.
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

/// A span that has ended, with links.
pub(crate) fn tell(work: Work<'_>, batch: Batch, links: &[TraceParent]) {
    let Some(Export { tracer, .. }) = EXPORT.get() else { return };
    let (kind, name, who) = match work {
        Work::Publish { stream } => (
            SpanKind::Producer,
            format!("publish {stream}"),
            KeyValue::new("messaging.destination.name", stream.to_owned()),
        ),
        Work::Fold { consumer } => {
            let who = KeyValue::new("messaging.consumer.group.name", consumer.to_owned());
            (SpanKind::Consumer, format!("process {consumer}"), who)
        }
    };
    let now = SystemTime::now();
    let mut span = tracer
        .span_builder(name)
        .with_kind(kind)
        .with_start_time(now - batch.took)
        .with_links(links.iter().map(|link| Link::with_context(context_of(*link))).collect())
        .with_attributes([
            who,
            KeyValue::new("messaging.batch.message_count", batch.record_count as i64),
            KeyValue::new("rocket_rides.first_offset", batch.first_offset),
        ])
        .start_with_context(tracer, &Context::new());
    span.end_with_timestamp(now);
}

fn context_of(place: TraceParent) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(place.trace_id),
        SpanId::from_bytes(place.span_id),
        TraceFlags::new(place.flags),
        true,
        TraceState::NONE,
    )
}

/// Sends what is left, and ends the export. A collector that does not answer is not waited for.
pub fn flush() {
    if let Some(Export { provider, .. }) = EXPORT.get()
        && let Err(error) = provider.shutdown_with_timeout(FLUSH_WAIT)
    {
        debug!(error = %error, "the last spans were not exported");
    }
}

/// The way to the collector. The SDK's thread waits in it, on a runtime of its own: so spans are sent while the process's
/// runtime is busy, and when it has ended. It lasts for one exchange, and so does the connection: there is one every few
/// seconds.
#[derive(Debug)]
struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Whether it was said already that spans are lost.
    is_away: AtomicBool,
}

impl Collector {
    fn new(endpoint: &str) -> Result<Self> {
        let tls = match endpoint.starts_with("https:") {
            true => tls::client_config()?,
            // It is not used, and must not fail where no authority is known.
            false => ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .context("preparing TLS")?
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth(),
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { client, is_away: AtomicBool::new(false) })
    }

    async fn ask(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let answer = self.client.request(request.map(Full::new)).await.context("sending spans")?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_LEN_MAX).collect().await.map_err(anyhow::Error::from_boxed)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }

    /// Says once that spans are lost, and once that they are not any more.
    fn note(&self, answer: &Result<Response<Bytes>>) {
        let lost = match answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
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
        let asking = async { tokio::time::timeout(ANSWER_WAIT, self.ask(request)).await };
        let answer = Builder::new_current_thread().enable_all().build()?.block_on(asking);
        let answer = answer.unwrap_or_else(|_| Err(anyhow!("no answer within {ANSWER_WAIT:?}")));
        self.note(&answer);
        Ok(answer?)
    }
}
