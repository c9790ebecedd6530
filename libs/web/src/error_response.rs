//! Error responses: a sentence for people and a code for programs.

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// How long a client should wait before it retries, in seconds.
const RETRY_AFTER_S: u16 = 1;

/// The body of every error response: `{"error":"There is no ride with this id.","code":"ride_unknown"}`.
#[derive(Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(description = "An error."))]
pub struct ErrorBody {
    /// For people: what to change.
    error: String,
    /// For programs: a word that stays the same.
    code: &'static str,
}

/// An error response.
///
/// ```
/// use axum::http::{StatusCode, header::RETRY_AFTER};
/// use axum::response::IntoResponse;
/// use web::ErrorResponse;
///
/// let error = ErrorResponse {
///     status: StatusCode::SERVICE_UNAVAILABLE,
///     code: "overloaded",
///     error: "Too many requests are waiting.".into(),
///     is_temporary: true,
/// };
/// assert_eq!(error.into_response().headers()[RETRY_AFTER], "1");
/// ```
#[derive(Debug, Clone)]
pub struct ErrorResponse {
    /// The status.
    pub status: StatusCode,
    /// For programs: a word that stays the same.
    pub code: &'static str,
    /// For people: a sentence that says what to change.
    pub error: Cow<'static, str>,
    /// Whether the same request may succeed a little later. The response then has a `Retry-After`.
    pub is_temporary: bool,
}

impl ErrorResponse {
    /// 403: the request asks for a name that is none of this server's [`Hosts`](crate::Hosts).
    pub fn unknown_host() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            code: "host_unknown",
            error: "This server does not answer under the name in the request's Host header. Ask for its address or \
                    localhost, or add the name to HTTP_HOSTS."
                .into(),
            is_temporary: false,
        }
    }

    /// 403: a browser sends the request for a page of an origin that may not change anything here.
    pub fn unknown_origin() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            code: "origin_unknown",
            error: "A page of another origin sends this request, and may not change anything here. The api lets pages \
                    do so whose origins are in API_CORS_ORIGINS."
                .into(),
            is_temporary: false,
        }
    }

    /// 503: the request took longer than [`Limits::request_wait`](crate::Limits::request_wait).
    pub fn late() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "unavailable",
            error: "The service did not respond in time. Please retry.".into(),
            is_temporary: true,
        }
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let body = Json(ErrorBody { error: self.error.into_owned(), code: self.code });
        let mut response = (self.status, body).into_response();
        if self.is_temporary {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        if self.status == StatusCode::REQUEST_TIMEOUT {
            // Bytes that arrive late would be taken for the next request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
