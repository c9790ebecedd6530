//! A collector of spans for tests: it accepts the requests of an OTLP exporter over HTTP, and keeps the spans.

use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use prost::Message;
use tokio::net::TcpListener;

/// A span context: trace id and span id.
pub type SpanContext = (String, String);

/// The parts of a span that tests look at.
#[derive(Debug, Clone)]
pub struct Span {
    /// The process's name.
    pub service: String,
    pub name: String,
    pub context: SpanContext,
    /// The parent's span id; empty at the root of a trace.
    pub parent: String,
    pub links: Vec<SpanContext>,
    attributes: Vec<KeyValue>,
}

impl Span {
    /// The value of a numeric attribute.
    pub fn number(&self, key: &str) -> Option<i64> {
        match find(&self.attributes, key) {
            Some(Value::IntValue(number)) => Some(*number),
            _ => None,
        }
    }
}

/// A collector on a free port.
pub struct Collector {
    endpoint: String,
    taken: Arc<Mutex<Taken>>,
}

/// The requests that came.
#[derive(Default)]
struct Taken {
    spans: Vec<Span>,
    /// Why a request was not an export of spans.
    complaints: Vec<String>,
}

impl Collector {
    /// Starts a collector. It runs until the test ends.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let taken = Arc::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&taken));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, taken }
    }

    /// The flags with which a process sends its spans here.
    pub fn flags(&self) -> [&str; 2] {
        ["--otel-exporter-otlp-endpoint", &self.endpoint]
    }

    /// All spans of this name.
    pub fn spans(&self, name: &str) -> Vec<Span> {
        self.sound().spans.iter().filter(|span| span.name == name).cloned().collect()
    }

    /// The number of all spans.
    pub fn span_count(&self) -> usize {
        self.sound().spans.len()
    }

    fn sound(&self) -> MutexGuard<'_, Taken> {
        let taken = self.taken.lock().unwrap();
        assert!(taken.complaints.is_empty(), "{:?}", taken.complaints);
        taken
    }
}

async fn take(State(taken): State<Arc<Mutex<Taken>>>, headers: HeaderMap, body: Bytes) {
    let spans = spans_of(&headers, body);
    let mut taken = taken.lock().unwrap();
    match spans {
        Ok(spans) => taken.spans.extend(spans),
        Err(complaint) => taken.complaints.push(complaint),
    }
}

fn spans_of(headers: &HeaderMap, body: Bytes) -> Result<Vec<Span>, String> {
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/x-protobuf") {
        return Err(format!("{headers:?}"));
    }
    let export = ExportTraceServiceRequest::decode(body).map_err(|error| error.to_string())?;
    let mut spans = Vec::new();
    for of_process in export.resource_spans {
        let resource = of_process.resource.unwrap_or_default().attributes;
        let Some(Value::StringValue(service)) = find(&resource, "service.name") else {
            return Err(format!("{resource:?}"));
        };
        for span in of_process.scope_spans.into_iter().flat_map(|of_library| of_library.spans) {
            if span.end_time_unix_nano < span.start_time_unix_nano {
                return Err(format!("{span:?}"));
            }
            spans.push(read(service, span));
        }
    }
    Ok(spans)
}

fn read(service: &str, span: Sent) -> Span {
    Span {
        service: service.to_owned(),
        name: span.name,
        context: (hex(&span.trace_id), hex(&span.span_id)),
        parent: hex(&span.parent_span_id),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        attributes: span.attributes,
    }
}

fn find<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.as_ref().and_then(|AnyValue { value }| value.as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
