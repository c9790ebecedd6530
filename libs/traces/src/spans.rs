//! The spans that a process adds to other programs' traces: one for a request, one for a batch. Users: api, streamer,
//! consumer.
//!
//! Spans are exported by OTLP, if the program was built with the feature `otlp` and `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//! Otherwise nothing is created and nothing is paid. A span belongs to a trace that a client has begun and records: a
//! request without `traceparent` costs nothing here.
//!
//! This uses OpenTelemetry's own API, not a layer of `tracing`. Such a layer would export every span of every library, and
//! would leave out the spans that `RUST_LOG` leaves out.

use crate::otlp;
use crate::trace_parent::TraceParent;

pub use crate::batch_span::{BatchSpan, Operation};

/// The most links that a batch's span has. The other traces are in the log, at level debug.
const LINK_COUNT_MAX: usize = 32;

/// A request that came with a trace, while it is handled. If it is dropped before its [`end`](Self::end), the span ends
/// without a status.
pub struct RequestSpan {
    open: Option<otlp::OpenSpan>,
    traceparent: TraceParent,
}

impl RequestSpan {
    /// Begins the span, as a child of the client's span.
    pub fn begin(method: &'static str, route: &'static str, client: TraceParent) -> Self {
        let open = if client.is_sampled() { otlp::open(method, route, client) } else { None };
        let traceparent = open.as_ref().map_or(client, otlp::OpenSpan::traceparent);
        Self { open, traceparent }
    }

    /// The parent of everything that the request causes: this span or, if spans are not exported, the client's.
    pub fn traceparent(&self) -> TraceParent {
        self.traceparent
    }

    /// Ends the span, with the status of the response.
    pub fn end(self, status: u16) {
        if let Some(open) = self.open {
            open.end(status);
        }
    }
}

/// Exports a span for a finished batch, with links to the spans in which its records were written. The span is a trace of
/// its own, because the batch belongs to all of these traces. Nothing is exported if none of them is recorded.
pub fn export_batch<'a>(span: &BatchSpan<'_>, traceparents: impl Iterator<Item = &'a str>) {
    if !otlp::is_on() {
        return;
    }
    let sampled = traceparents.filter_map(TraceParent::parse).filter(TraceParent::is_sampled);
    let links: Vec<TraceParent> = sampled.take(LINK_COUNT_MAX).collect();
    if !links.is_empty() {
        otlp::export_batch(span, &links);
    }
}
