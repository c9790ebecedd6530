//! Reads a request's body as a whole, up to a size and within a time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use tokio::time::timeout;

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// It is longer than allowed.
    TooLarge,
    /// It did not arrive in time. The response must close the connection, as [`ErrorResponse`](crate::ErrorResponse) does
    /// with status 408: bytes that arrive late would be taken for the next request.
    TooSlow,
    /// The connection broke, or the client sent something that is not a body.
    Broken,
}

/// Whether the body of a request with these headers is compressed, for example by gzip. No server here decompresses a body: a
/// small one could become very large. The response should be 415.
pub fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Reads a body of at most `len_max` bytes that arrives within `wait`.
///
/// # Errors
/// See [`BodyError`].
pub async fn read_body<B>(body: B, len_max: usize, wait: Duration) -> Result<Bytes, BodyError>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    timeout(wait, read_all(body, len_max)).await.map_err(|_| BodyError::TooSlow)?
}

async fn read_all<B>(mut body: B, len_max: usize) -> Result<Bytes, BodyError>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut whole = Bytes::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| BodyError::Broken)?;
        // Trailers are ignored.
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > len_max {
            return Err(BodyError::TooLarge);
        }
        // A small body arrives in one piece, and nothing is copied.
        whole = if whole.is_empty() { data } else { [whole, data].concat().into() };
    }
    Ok(whole)
}
