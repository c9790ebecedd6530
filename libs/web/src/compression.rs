//! Compresses larger answers for clients that ask for it. Answers of `POST /rides` never come here: they are small.

use std::io::{self, Read, Write};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::error::Error;

/// The smallest answer worth it, in bytes: smaller ones fit into one packet as they are.
const LEN_MIN: u64 = 1024;

/// Compresses what the handlers answer, if it is large and the client takes gzip.
pub(crate) async fn compress(request: Request, next: Next) -> Result<Response, Error> {
    let accepts = accepts_gzip(request.headers());
    let response = next.run(request).await;
    // Every body here is whole, so its length is known.
    let is_large = response.body().size_hint().exact().is_some_and(|len| len >= LEN_MIN);
    if !is_large || response.headers().contains_key(CONTENT_ENCODING) {
        return Ok(response);
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    if !accepts {
        return Ok(Response::from_parts(parts, body));
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.map_err(|_| Error::Internal)?;
    let compressed = gzip(&body).map_err(|_| Error::Internal)?;
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.remove(CONTENT_LENGTH);
    Ok(Response::from_parts(parts, Body::from(compressed)))
}

/// Whether a client takes gzip: it says so, by name or by `*`, and does not say that it would rather not (`q=0`).
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut by_star = false;
    for coding in codings.flat_map(|value| value.split(',')) {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().to_ascii_lowercase();
        let is_wanted = weight.strip_prefix("q=").is_none_or(|q| q.trim().parse().is_ok_and(|q: f32| q > 0.0));
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => return is_wanted,
            "*" => by_star = is_wanted,
            _ => {}
        }
    }
    by_star
}

fn gzip(bytes: &[u8]) -> io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?.into())
}

/// What was compressed, for a client that does not take it so.
pub(crate) fn gunzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut whole)?;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_those_who_want_it() {
        for (value, accepts) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("x-gzip", true),
            ("*", true),
            ("gzip; q=1.000", true),
            ("", false),
            ("br", false),
            ("identity", false),
            ("gzip;q=0", false),
            ("gzip;q=0.000, *", false),
            ("*;q=0", false),
            ("*;q=0, gzip", true),
            ("gzip;q=x", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(accepts_gzip(&headers), accepts, "{value:?}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn what_is_compressed_is_found_again() {
        let bytes = "a ride ".repeat(1000);
        let compressed = gzip(bytes.as_bytes()).unwrap();
        assert!(compressed.len() < bytes.len() / 10, "{}", compressed.len());
        assert_eq!(gunzip(&compressed).unwrap(), bytes.as_bytes());
    }
}
