//! Everything that can go wrong with a request, as the client sees it. No text of the database ever leaves the process.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// How long a client should wait before it tries again, in seconds.
const RETRY_AFTER_S: u16 = 1;

/// An answer that is not what the client hoped for. The text says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No distance was given.
    #[error("Please specify parameter 'distance'.")]
    DistanceMissing,
    /// The distance is not a number.
    #[error("Parameter 'distance' must be a floating-point number.")]
    DistanceNotANumber,
    /// The distance is negative, nothing, or absurd.
    #[error("Parameter 'distance' must be at least 0.001 and at most 1000000000 metres.")]
    DistanceOutOfRange,
    /// A parameter of the query string cannot be used.
    #[error("Parameter '{name}' must be {wanted}.")]
    Parameter {
        /// Its name.
        name: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// The body is not what its content type says.
    #[error("{0}")]
    Malformed(String),
    /// The body is larger than a ride needs.
    #[error("The body is too large: at most {max} bytes are read.")]
    TooLarge {
        /// The bound, in bytes.
        max: usize,
    },
    /// The body did not come in time.
    #[error("The body did not arrive in time. Send it at once.")]
    TooSlow,
    /// Neither a form nor JSON.
    #[error("Send the body as application/x-www-form-urlencoded or as application/json.")]
    UnsupportedType,
    /// There is no such path.
    #[error("There is nothing at this path. Try POST /rides, GET /rides, GET /rides/{{id}} or GET /totals.")]
    NoSuchPath,
    /// There is no such ride.
    #[error("There is no ride with this id.")]
    NoSuchRide,
    /// The path exists, but not for this method.
    #[error("This path does not support that method; the Allow header lists those it does.")]
    WrongMethod,
    /// More requests are waiting than can be served soon. This one was not begun.
    #[error("Too many requests are waiting. This one was not accepted; please retry.")]
    Overloaded,
    /// The database is away, or does not answer in time. The ride may have been written: the connection may have been
    /// lost after COMMIT.
    #[error("The service is temporarily unavailable. Please retry.")]
    Unavailable,
    /// Our fault.
    #[error("Internal server error.")]
    Internal,
}

impl Error {
    /// A stable word for programs, where the sentence is for people.
    fn code(&self) -> &'static str {
        match self {
            Self::DistanceMissing => "distance_missing",
            Self::DistanceNotANumber => "distance_not_a_number",
            Self::DistanceOutOfRange => "distance_out_of_range",
            Self::Parameter { .. } => "parameter_invalid",
            Self::Malformed(_) => "body_malformed",
            Self::TooLarge { .. } => "body_too_large",
            Self::TooSlow => "body_too_slow",
            Self::UnsupportedType => "content_type_unsupported",
            Self::NoSuchPath => "path_unknown",
            Self::NoSuchRide => "ride_unknown",
            Self::WrongMethod => "method_not_allowed",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::DistanceMissing | Self::DistanceNotANumber | Self::DistanceOutOfRange | Self::Parameter { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::UnsupportedType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NoSuchPath | Self::NoSuchRide => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::Overloaded | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: String,
            code: &'static str,
        }
        let body = Json(Body { error: self.to_string(), code: self.code() });
        let mut response = (self.status(), body).into_response();
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        if response.status() == StatusCode::REQUEST_TIMEOUT {
            // What comes late would be taken for the next request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
