//! The error responses of each route, for the description. Status, code and sentence come from [`Error`].

use std::collections::{BTreeMap, BTreeSet};

use axum::http::StatusCode;
use pglog::{Partition, PartitionCount, UnknownPartition};
use serde_json::json;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder};
use utoipa::openapi::{Content, Object, Ref, RefOr, Response, ResponseBuilder, Type};
use utoipa::{IntoResponses, ToResponse};

use crate::body::BODY_LEN_MAX;
use crate::bookings::KEY_LEN_MIN;
use crate::error::{CHALLENGE, Error};
use crate::key::KEY_LEN_MAX;

/// The responses of an operation, by status.
pub(crate) type Responses = BTreeMap<String, RefOr<Response>>;

/// An error, as the description shows it.
pub(crate) struct Case {
    pub status: StatusCode,
    pub code: &'static str,
    pub text: String,
    pub is_temporary: bool,
}

impl From<&Error> for Case {
    fn from(error: &Error) -> Self {
        Self { status: error.status(), code: error.code(), text: error.to_string(), is_temporary: error.is_temporary() }
    }
}

/// Errors of any route that reads.
pub(crate) struct ReadErrors;

impl IntoResponses for ReadErrors {
    fn responses() -> Responses {
        by_status(&READ)
    }
}

/// Errors of `GET /totals`.
pub(crate) struct TotalsErrors;

impl IntoResponses for TotalsErrors {
    fn responses() -> Responses {
        let by = Error::Parameter { name: "by", wanted: "'partition', or left out" };
        let unknown = Error::ParameterUnknown { known: "'by'" };
        let malformed = Error::Malformed("The query string is malformed.".to_owned());
        by_status(&[&[by, unknown, malformed], &READ[..]].concat())
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
        let partition = UnknownPartition { partition: Partition::FIRST, count: PartitionCount::ONE };
        let unknown = Error::PartitionUnknown(partition);
        by_status(&[&[after, unknown, malformed, missing, Error::TooManyWatchers], &READ[..]].concat())
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
        ("NoSuchPath", response_of("ErrorBody", &[Case::from(&Error::NoSuchPath)]).into())
    }
}

/// The response for a method that a path does not support.
pub(crate) struct WrongMethod;

impl<'r> ToResponse<'r> for WrongMethod {
    fn response() -> (&'r str, RefOr<Response>) {
        ("WrongMethod", response_of("ErrorBody", &[Case::from(&Error::WrongMethod)]).into())
    }
}

fn by_status(errors: &[Error]) -> Responses {
    described("ErrorBody", errors.iter().map(Case::from))
}

/// One response per status, whose body has the schema `body`.
pub(crate) fn described(body: &str, cases: impl Iterator<Item = Case>) -> Responses {
    let mut groups: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    for case in cases {
        groups.entry(case.status.as_str().to_owned()).or_default().push(case);
    }
    groups.into_iter().map(|(status, cases)| (status, response_of(body, &cases).into())).collect()
}

/// One response for all errors of one status.
fn response_of(body: &str, cases: &[Case]) -> Response {
    let lines: Vec<String> = cases.iter().map(|case| format!("* `{}`: {}", case.code, case.text)).collect();
    let codes: BTreeSet<&str> = cases.iter().map(|case| case.code).collect();
    let code =
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(codes.into_iter().map(|code| json!(code))));
    let schema =
        AllOfBuilder::new().item(Ref::from_schema_name(body)).item(ObjectBuilder::new().property("code", code)).build();
    let mut response = ResponseBuilder::new()
        .description(lines.join("\n"))
        .content("application/json", Content::new(Some(RefOr::T(schema.into()))));
    let text_header = |about: &str| {
        HeaderBuilder::new().schema(Some(Object::with_type(Type::String))).description(Some(about)).build()
    };
    if cases.iter().any(|case| case.status == StatusCode::UNAUTHORIZED) {
        let about = format!("`{CHALLENGE}`: send the e-mail address of a user as `Authorization`.");
        response = response.header("WWW-Authenticate", text_header(&about));
    }
    if cases.iter().any(|case| case.status == StatusCode::METHOD_NOT_ALLOWED) {
        response = response.header("Allow", text_header("The path's methods."));
    }
    if !cases.iter().any(|case| case.is_temporary) {
        return response.build();
    }
    let retry_after = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).build();
    let about = "Seconds after which the same request may succeed.";
    let retry_after = HeaderBuilder::new().schema(Some(retry_after)).description(Some(about)).build();
    response.header("Retry-After", retry_after).build()
}
