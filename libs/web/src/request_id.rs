//! An id for each request, which connects a client's request with a line of the log. A client can send its own id;
//! otherwise the server makes one. A server that is told so puts the id on each response.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tracing::{Span, info_span};

/// The header of requests and of responses.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is accepted from a client, in bytes.
const LEN_MAX: usize = 128;

/// The id of a request.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The client's id, or a new one if the client sends none. An id that is empty, too long, or not visible ASCII is
    /// replaced: it could spoil the log.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        match headers.get(&REQUEST_ID) {
            Some(value) if is_acceptable(value.as_bytes()) => Self(value.clone()),
            _ => Self::next(),
        }
    }

    /// A new id. A process counts from a random number on, so its ids differ from each other, and almost certainly from
    /// those of other processes.
    fn next() -> Self {
        static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(rand::random()));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(HeaderValue::try_from(format!("{number:016x}")).expect("digits are a header's value"))
    }

    /// The id as text, for a line of the log.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("visible ASCII")
    }

    /// A span that puts the id on every line that is logged within it.
    pub fn span(&self) -> Span {
        info_span!("request", request_id = self.as_str())
    }

    /// Puts the id on the response.
    pub(crate) fn mark(self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.0);
    }
}

fn is_acceptable(id: &[u8]) -> bool {
    (1..=LEN_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(value: &[u8]) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_bytes(value).unwrap());
        RequestId::of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_sane_id_of_the_client_is_taken() {
        for id in ["x", "4bf92f3577b34da6a3ce929d0e0e4736", "a/b+c=!~", &"x".repeat(128)] {
            assert_eq!(id_of(id.as_bytes()), id);
        }
    }

    #[test]
    fn any_other_id_is_replaced() {
        for id in [&b""[..], b"a b", b"a\tb", b"\xff", "é".as_bytes(), &[b'x'; 129]] {
            let made = id_of(id);
            assert!(made.len() == 16 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?}: {made}");
        }
    }

    #[test]
    fn made_ids_differ() {
        let headers = HeaderMap::new();
        let ids: std::collections::HashSet<String> =
            (0..1000).map(|_| RequestId::of(&headers).as_str().to_owned()).collect();
        assert_eq!(ids.len(), 1000);
    }
}
