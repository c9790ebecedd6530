//! What this process did for a request or for a batch, as spans of the traces that these belong to. Users: api, streamer,
//! consumer, and telemetry, which starts and ends it.
//!
//! Spans are exported by OTLP, if the program was built with the feature `otlp` and `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//! Otherwise nothing is made and nothing is paid. They are made for traces that somebody else has begun and records, and
//! for no others: a request without `traceparent` costs nothing here.
//!
//! It is OpenTelemetry's own API and not a layer of `tracing`: that would make a span of every span of every library, and
//! leave out those that `RUST_LOG` leaves out.

use std::time::Duration;

use crate::TraceParent;
use crate::otlp;

/// The most links that a batch's span has. The others are in the log, at level debug.
const LINK_COUNT_MAX: usize = 32;

/// A request that came with a trace, while it is answered. Dropped before its [`end`](Self::end) it ends without a status.
pub struct RequestSpan {
    open: Option<otlp::OpenSpan>,
    traceparent: TraceParent,
}

impl RequestSpan {
    /// Begins it, as a part of what the client did.
    pub fn begin(method: &'static str, route: &'static str, client: TraceParent) -> Self {
        let open = if client.is_sampled() { otlp::open(method, route, client) } else { None };
        let traceparent = open.as_ref().map_or(client, otlp::OpenSpan::traceparent);
        Self { open, traceparent }
    }

    /// What becomes of the request is a part of this: of the span, or, where spans are not exported, of the client's.
    pub fn traceparent(&self) -> TraceParent {
        self.traceparent
    }

    /// Ends it, with the status of the answer.
    pub fn end(self, status: u16) {
        if let Some(open) = self.open {
            open.end(status);
        }
    }
}

/// What was done with a batch of records.
#[derive(Debug, Clone, Copy)]
pub enum Work<'a> {
    /// They were appended to the stream.
    Publish {
        /// The stream's key.
        stream: &'a str,
    },
    /// They were folded, and the state is committed.
    Fold {
        /// Who did.
        consumer: &'a str,
    },
}

/// Records that were done together.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// The first one's offset.
    pub first_offset: i64,
    /// How many.
    pub record_count: usize,
    /// How long it took, until now.
    pub took: Duration,
}

/// Tells of a batch that is done: a span of its own, with links to the spans in which its records were written. It is no
/// part of any of these traces, because it belongs to all of them. Nothing if none of them is recorded by anybody.
pub fn tell<'a>(work: Work<'_>, batch: Batch, traceparents: impl Iterator<Item = &'a str>) {
    if !otlp::is_on() {
        return;
    }
    let sampled = traceparents.filter_map(TraceParent::parse).filter(TraceParent::is_sampled);
    let links: Vec<TraceParent> = sampled.take(LINK_COUNT_MAX).collect();
    if !links.is_empty() {
        otlp::tell(work, batch, &links);
    }
}
