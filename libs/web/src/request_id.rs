//! A name for each request, by which a client's question and a line of the log find each other. It is the client's own,
//! where that is sane, and otherwise a new one; every answer bears it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tracing::{Span, info_span};

/// The header of requests and of answers.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest name that is taken from a client, in bytes.
const LEN_MAX: usize = 128;

/// The name of a request.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    /// The client's, or a new one. One that is empty, long, or not of visible ASCII would only make a mess of the log.
    pub fn of(headers: &HeaderMap) -> Self {
        match headers.get(&REQUEST_ID) {
            Some(value) if is_sane(value.as_bytes()) => Self(value.clone()),
            _ => Self::new(),
        }
    }

    /// Counts from a random number on: names of one process never meet, and those of two hardly ever.
    pub fn new() -> Self {
        static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(rand::random()));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(HeaderValue::try_from(format!("{number:016x}")).expect("digits are a header's value"))
    }

    /// For a line of the log.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("visible ASCII")
    }

    /// What is logged within bears the name. Not for guests' rides: many are written together, and a span for each
    /// would cost more than it tells.
    pub fn span(&self) -> Span {
        info_span!("request", request_id = self.as_str())
    }

    /// Puts it on the answer.
    pub fn mark(self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.0);
    }
}

fn is_sane(name: &[u8]) -> bool {
    (1..=LEN_MAX).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(value: &[u8]) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
        RequestId::of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_sane_name_of_the_client_is_taken() {
        for name in ["x", "4bf92f3577b34da6a3ce929d0e0e4736", "a/b+c=!~", &"x".repeat(128)] {
            assert_eq!(name_of(name.as_bytes()), name);
        }
    }

    #[test]
    fn any_other_name_is_replaced() {
        for name in [&b""[..], b"a b", b"a\tb", b"\xff", "é".as_bytes(), &[b'x'; 129]] {
            let made = name_of(name);
            assert!(made.len() == 16 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name:?}: {made}");
        }
    }

    #[test]
    fn made_names_differ() {
        let headers = HeaderMap::new();
        let names: std::collections::HashSet<String> =
            (0..1000).map(|_| RequestId::of(&headers).as_str().to_owned()).collect();
        assert_eq!(names.len(), 1000);
    }
}
