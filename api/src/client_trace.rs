//! The trace that a request belongs to, if its client sends one, and the span of the request in it.

use axum::http::{HeaderMap, HeaderName};
use axum::response::Response;
use traces::TraceParent;
use traces::spans::RequestSpan;
use tracing::debug;

/// The header in which a client sends its trace.
const HEADER: HeaderName = HeaderName::from_static("traceparent");

/// A `POST` while it is handled. `None` inside: its client sends no trace.
pub(crate) struct ClientSpan(Option<RequestSpan>);

impl ClientSpan {
    /// Begins the span of a request for `route`.
    pub fn begin(headers: &HeaderMap, route: &'static str) -> Self {
        Self(client_trace(headers).map(|client| RequestSpan::begin("POST", route, client)))
    }

    /// The parent of everything that the request causes.
    pub fn traceparent(&self) -> Option<TraceParent> {
        self.0.as_ref().map(RequestSpan::traceparent)
    }

    /// Ends the span, with the status of the response.
    pub fn end(self, response: &Response) {
        if let Some(span) = self.0 {
            let status = response.status().as_u16();
            debug!(traceparent = %span.traceparent(), status, "a request of a trace is answered");
            span.end(status);
        }
    }
}

/// The client's trace. A header that is malformed or sent twice is treated as absent, as the W3C's Trace Context demands.
fn client_trace(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all(HEADER).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    TraceParent::parse(value.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (HEADER, value.parse().unwrap())).collect()
    }

    #[test]
    fn one_header_that_is_well_formed_is_a_trace_and_anything_else_is_none() {
        assert_eq!(client_trace(&headers(&[TEXT])).unwrap().to_string(), TEXT);
        for values in [&[][..], &["00-1-2-01"], &["ü"], &[TEXT, TEXT]] {
            assert_eq!(client_trace(&headers(values)), None, "{values:?}");
        }
    }
}
