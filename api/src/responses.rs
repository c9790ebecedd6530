//! The error responses of each route, for the description. Status, code and sentence come from [`Error`].

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::json;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder};
use utoipa::openapi::{Content, Object, Ref, RefOr, Response, ResponseBuilder, Type};
use utoipa::{IntoResponses, ToResponse};

use crate::body::BODY_LEN_MAX;
use crate::bookings::{KEY_LEN_MAX, KEY_LEN_MIN};
use crate::error::{CHALLENGE, Error};

type Responses = BTreeMap<String, RefOr<Response>>;

/// Errors of any route that reads.
pub(crate) struct ReadErrors;

impl IntoResponses for ReadErrors {
    fn responses() -> Responses {
        by_status(&READ)
    }
}

/// Errors of `GET /rides/{id}`.
pub(crate) struct ShowErrors;

impl IntoResponses for ShowErrors {
    fn responses() -> Responses {
        by_status(&[&[Error::NoSuchRide], &READ[..]].concat())
    }
}

/// Errors of `GET /rides`.
pub(crate) struct ListErrors;

impl IntoResponses for ListErrors {
    fn responses() -> Responses {
        let limit = Error::Parameter { name: "limit", wanted: "a whole number between 1 and 1000" };
        let malformed = Error::Malformed("The query string is malformed.".to_owned());
        by_status(&[&[limit, malformed], &READ[..]].concat())
    }
}

/// Errors of `GET /history`.
pub(crate) struct HistoryErrors;

impl IntoResponses for HistoryErrors {
    fn responses() -> Responses {
        let after = Error::Parameter { name: "after", wanted: "an offset, or 0 for the beginning" };
        let malformed = Error::Malformed("The query string is malformed.".to_owned());
        let missing = Error::RecordsMissing { first: 8, last: 19 };
        by_status(&[&[after, malformed, missing, Error::TooManyWatchers], &READ[..]].concat())
    }
}

/// Errors of `POST /rides`.
pub(crate) struct BookingErrors;

impl IntoResponses for BookingErrors {
    fn responses() -> Responses {
        by_status(&[
            Error::Malformed("The body must be a JSON object: it is not.".to_owned()),
            Error::KeyMissing,
            Error::KeyMalformed,
            Error::KeyTooShort { min: KEY_LEN_MIN },
            Error::KeyTooLong { max: KEY_LEN_MAX },
            Error::CredentialsMissing,
            Error::CredentialsInvalid,
            Error::TooSlow,
            Error::KeyMismatch,
            Error::KeyInProgress,
            Error::Conflict,
            Error::KeyExpired,
            Error::TooLarge { max: BODY_LEN_MAX },
            Error::UnsupportedType,
            Error::Encoded,
            Error::DistanceMissing,
            Error::DistanceNotANumber,
            Error::DistanceOutOfRange,
            Error::ParameterMissing("origin_lat"),
            Error::NotANumber("origin_lat"),
            Error::NotALatitude("origin_lat"),
            Error::NotALongitude("origin_lon"),
            Error::NotABoolean("raise_error"),
            Error::Internal,
            Error::BookingFailed,
            Error::Overloaded,
            Error::Unavailable,
            Error::Processor { retry_after_s: 1 },
            Error::PaymentPending,
            Error::ProcessorRefused,
            Error::BookingsOff,
        ])
    }
}

const READ: [Error; 3] = [Error::Internal, Error::Overloaded, Error::Unavailable];

/// The response for a path that does not exist.
pub(crate) struct NoSuchPath;

impl<'r> ToResponse<'r> for NoSuchPath {
    fn response() -> (&'r str, RefOr<Response>) {
        ("NoSuchPath", response_of(&[&Error::NoSuchPath]).into())
    }
}

/// The response for a method that a path does not support.
pub(crate) struct WrongMethod;

impl<'r> ToResponse<'r> for WrongMethod {
    fn response() -> (&'r str, RefOr<Response>) {
        let allow = HeaderBuilder::new().schema(Some(Object::with_type(Type::String)));
        let mut response = response_of(&[&Error::WrongMethod]);
        response.headers.insert("Allow".to_owned(), allow.description(Some("The path's methods.")).build().into());
        ("WrongMethod", response.into())
    }
}

fn by_status(errors: &[Error]) -> Responses {
    let mut groups: BTreeMap<String, Vec<&Error>> = BTreeMap::new();
    for error in errors {
        groups.entry(error.status().as_str().to_owned()).or_default().push(error);
    }
    groups.into_iter().map(|(status, errors)| (status, response_of(&errors).into())).collect()
}

/// One response for all errors of one status.
fn response_of(errors: &[&Error]) -> Response {
    let lines: Vec<String> = errors.iter().map(|error| format!("* `{}`: {error}", error.code())).collect();
    let code = ObjectBuilder::new().schema_type(Type::String);
    let code = code.enum_values(Some(errors.iter().map(|error| json!(error.code()))));
    let schema = AllOfBuilder::new()
        .item(Ref::from_schema_name("ErrorBody"))
        .item(ObjectBuilder::new().property("code", code))
        .build();
    let mut response = ResponseBuilder::new()
        .description(lines.join("\n"))
        .content("application/json", Content::new(Some(RefOr::T(schema.into()))));
    if errors.iter().any(|error| error.status() == StatusCode::UNAUTHORIZED) {
        let challenge = HeaderBuilder::new().schema(Some(Object::with_type(Type::String)));
        let about = format!("`{CHALLENGE}`: send the e-mail address of a user as `Authorization`.");
        response = response.header("WWW-Authenticate", challenge.description(Some(about)).build());
    }
    if !errors.iter().any(|error| error.is_temporary()) {
        return response.build();
    }
    let retry_after = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).build();
    let about = "Seconds after which the same request may succeed.";
    let retry_after = HeaderBuilder::new().schema(Some(retry_after)).description(Some(about)).build();
    response.header("Retry-After", retry_after).build()
}
