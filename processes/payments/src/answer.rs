//! Responses in Stripe's form.

use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderName, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use serde_json::{Value, json};

use crate::ledger::{DECLINED_CODE, DECLINED_MESSAGE, Made};

/// A response: a status and a body.
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

    /// The response for a charge or a customer, byte for byte the same each time.
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

    /// Whether the request succeeded.
    pub fn is_good(&self) -> bool {
        self.status.is_success()
    }

    /// The same response, marked as a replay.
    pub fn again(self) -> Self {
        Self { replayed: true, ..self }
    }

    /// An error of a type of Stripe's, with or without a code.
    pub fn error<'a>(status: StatusCode, kind: &str, code: impl Into<Option<&'a str>>, message: &str) -> Self {
        let mut error = json!({ "type": kind, "message": message });
        if let Some(code) = code.into() {
            error["code"] = json!(code);
        }
        Self { status, ..Self::ok(&json!({ "error": error })) }
    }

    /// 400: the client has to change the request.
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
        let challenge =
            (self.status == StatusCode::UNAUTHORIZED).then_some((WWW_AUTHENTICATE, r#"Bearer realm="payments""#));
        let headers = AppendHeaders(replayed.into_iter().chain(challenge));
        (self.status, [(CONTENT_TYPE, "application/json")], headers, self.body).into_response()
    }
}
