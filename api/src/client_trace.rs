//! The trace that a request belongs to, if its client sends one.

use axum::http::{HeaderMap, HeaderName};
use traces::TraceParent;

/// The header in which a client sends its trace.
const HEADER: HeaderName = HeaderName::from_static("traceparent");

/// The client's trace. A header that is malformed or sent twice is treated as absent, as the W3C's Trace Context demands.
pub(crate) fn client_trace(headers: &HeaderMap) -> Option<TraceParent> {
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
