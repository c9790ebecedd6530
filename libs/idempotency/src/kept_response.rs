//! An HTTP response that can be stored and replayed.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::error;

use crate::error::Error;

/// The headers that are stored with a response.
const KEPT_HEADERS: [HeaderName; 2] = [CONTENT_TYPE, LOCATION];

/// The longest body that is stored, in bytes.
const BODY_LEN_MAX: usize = 1 << 20;

/// The response while the store is away: the status, seconds until a retry, and the text.
const STORE_IS_AWAY: (StatusCode, Option<u128>, Option<&str>) = (
    StatusCode::SERVICE_UNAVAILABLE,
    Some(1),
    Some("Operations cannot be tracked at the moment. Please retry with the same Idempotency-Key."),
);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A response with its whole body.
#[derive(Debug)]
pub(crate) struct KeptResponse {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// The first line of a stored response, as JSON. The bytes of the body follow.
#[derive(Serialize, Deserialize)]
struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

impl KeptResponse {
    /// Reads a response to its end.
    ///
    /// # Errors
    /// The body ended early.
    pub(crate) async fn read<B>(response: Response<B>) -> Result<Self, BoxError>
    where
        B: BodyExt<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = response.into_parts();
        match Limited::new(body, BODY_LEN_MAX).collect().await {
            Ok(body) => Ok(Self { status: parts.status, headers: parts.headers, body: body.to_bytes() }),
            // The work is done and must not be done again, so this response is stored in place of the long one.
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                error!(status = parts.status.as_u16(), "an answer is too long to be kept");
                let text = "The operation was done, but its answer is too long to be kept.";
                Ok(Self::refusal(StatusCode::INTERNAL_SERVER_ERROR, text))
            }
            Err(error) => Err(error),
        }
    }

    /// `{"error": …}`.
    pub(crate) fn refusal(status: StatusCode, text: &str) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        Self { status, headers, body: json!({ "error": text }).to_string().into() }
    }

    /// The response to an error that does not come from the work.
    pub(crate) fn of_error(error: &Error) -> Self {
        // The text of a panic or of a database may contain anything, so only the log gets it.
        let (status, retry_after_s, text) = match error {
            Error::Expired { .. } | Error::ResultLost { .. } => (StatusCode::GONE, None, None),
            Error::StillRunning { retry_after, .. } => {
                let left_s = retry_after.map_or(1, |left| left.as_millis().div_ceil(1000).max(1));
                (StatusCode::CONFLICT, Some(left_s), None)
            }
            Error::Mismatch { .. } => (StatusCode::CONFLICT, None, None),
            Error::Fenced => {
                (StatusCode::CONFLICT, Some(1), Some("The operation took too long and was claimed again."))
            }
            Error::Invalid(_) => (StatusCode::BAD_REQUEST, None, None),
            Error::Panic(_) | Error::Failed(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                None,
                Some("Internal server error. Please retry the request with the same Idempotency-Key."),
            ),
            Error::Postgres(_) | Error::Pool(_) => STORE_IS_AWAY,
            #[cfg(feature = "redis")]
            Error::Redis(_) => STORE_IS_AWAY,
        };
        if status.is_server_error() {
            error!(error = error as &dyn std::error::Error, "an operation was not tracked to its end");
        }
        let mut response =
            text.map_or_else(|| Self::refusal(status, &error.to_string()), |text| Self::refusal(status, text));
        if let Some(retry_after_s) = retry_after_s {
            response
                .headers
                .insert(RETRY_AFTER, retry_after_s.to_string().parse().expect("digits are a header's value"));
        }
        response
    }

    /// The bytes that are stored.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let kept = |name: &HeaderName| {
            let value = self.headers.get(name)?.to_str().ok()?;
            Some((name.as_str().to_owned(), value.to_owned()))
        };
        let head = Head { status: self.status.as_u16(), headers: KEPT_HEADERS.iter().filter_map(kept).collect() };
        let mut bytes = serde_json::to_vec(&head).expect("numbers and texts have a form in JSON");
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// A stored response, marked as a replay. `None`: the bytes are not a stored response.
    pub(crate) fn decode(bytes: Vec<u8>) -> Option<Self> {
        let head_len = bytes.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(&bytes[..head_len]).ok()?;
        let mut headers = HeaderMap::new();
        for (name, value) in head.headers {
            headers.insert(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
        }
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
        let body = Bytes::from(bytes).slice(head_len + 1..);
        Some(Self { status: StatusCode::from_u16(head.status).ok()?, headers, body })
    }

    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_response_comes_back_byte_for_byte_with_its_kept_headers() {
        let body: Vec<u8> = (0..=255).chain(*b"\n\n{}").collect();
        let response = Response::builder()
            .status(201)
            .header("content-type", "image/png; x=\"y\"")
            .header("location", "/rides/1")
            .header("set-cookie", "secret")
            .body(Full::<Bytes>::from(body.clone()))
            .unwrap();
        let kept = KeptResponse::read(response).await.unwrap().encode();
        let response = KeptResponse::decode(kept).unwrap().into_response();
        assert_eq!(response.status(), 201);
        let names: Vec<&str> = response.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["content-type", "location", "idempotent-replayed"]);
        assert_eq!(response.headers()["content-type"], "image/png; x=\"y\"");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }

    #[test]
    fn other_bytes_are_not_read_as_a_response() {
        for bytes in ["", "\n", "{}\n", "{\"status\":99,\"headers\":[]}\n", "{\"status\":200,\"headers\":[]}"] {
            assert!(KeptResponse::decode(bytes.into()).is_none(), "{bytes}");
        }
    }
}
