//! Answers of Stripe's shapes.

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use serde_json::{Value, json};

use crate::ledger::{DECLINED_CODE, DECLINED_MESSAGE, Made};

/// A status and a body, of whatever is good or bad.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    body: String,
    replayed: bool,
}

impl Answer {
    /// 200 with an object.
    pub fn ok(object: &Value) -> Self {
        Self { status: StatusCode::OK, body: object.to_string(), replayed: false }
    }

    /// What a request made, byte for byte the same each time.
    pub fn of(made: &Made) -> Self {
        match made {
            Made::Customer(customer) => Self::ok(&customer.to_json()),
            Made::Charge(charge) if charge.declined => {
                let (code, message) = (DECLINED_CODE, DECLINED_MESSAGE);
                let error = json!({ "type": "card_error", "code": code, "message": message, "charge": charge.id });
                Self { status: StatusCode::PAYMENT_REQUIRED, ..Self::ok(&json!({ "error": error })) }
            }
            Made::Charge(charge) => Self::ok(&charge.to_json()),
        }
    }

    pub fn is_good(&self) -> bool {
        self.status.is_success()
    }

    /// The same answer, marked as one that was given before.
    pub fn again(self) -> Self {
        Self { replayed: true, ..self }
    }

    /// An error of one of Stripe's types, with or without one of its codes.
    pub fn error<'a>(status: StatusCode, kind: &str, code: impl Into<Option<&'a str>>, message: &str) -> Self {
        let mut error = json!({ "type": kind, "message": message });
        if let Some(code) = code.into() {
            error["code"] = json!(code);
        }
        Self { status, ..Self::ok(&json!({ "error": error })) }
    }

    /// 400: the request has to be changed.
    pub fn invalid<'a>(code: impl Into<Option<&'a str>>, message: &str) -> Self {
        Self::error(StatusCode::BAD_REQUEST, "invalid_request_error", code, message)
    }

    /// 500.
    pub fn internal() -> Self {
        Self::error(StatusCode::INTERNAL_SERVER_ERROR, "api_error", None, "An unknown error occurred.")
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let replayed = self.replayed.then_some((HeaderName::from_static("idempotent-replayed"), "true"));
        (self.status, [(CONTENT_TYPE, "application/json")], AppendHeaders(replayed), self.body).into_response()
    }
}
