//! Responses in Stripe's form.

use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderName, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use serde_json::{Value, json};

use crate::ledger::{DECLINED_CODE, DECLINED_MESSAGE, Made, new_id};

/// Stripe's name for a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// A response: a status and a body.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    body: String,
    replayed: bool,
    should_retry: Option<bool>,
}

impl Answer {
    /// 200 with an object.
    pub fn ok(object: &Value) -> Self {
        Self { status: StatusCode::OK, body: object.to_string(), replayed: false, should_retry: None }
    }

    /// The response for a charge or a customer, byte for byte the same each time.
    pub fn of(made: &Made) -> Self {
        match made {
            Made::Customer(customer) => Self::ok(&customer.to_json()),
            // A charge that is pending is declined later.
            Made::Charge(charge) if charge.declined && charge.settles_at_ms.is_none() => {
                let (code, message) = (DECLINED_CODE, DECLINED_MESSAGE);
                let error = json!({ "type": "card_error", "code": code, "message": message, "charge": charge.id });
                Self { status: StatusCode::PAYMENT_REQUIRED, ..Self::ok(&json!({ "error": error })) }
            }
            Made::Charge(charge) => Self::ok(&charge.to_json_as_made()),
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

    /// The same response, with Stripe's advice on a retry.
    pub fn advising(self, should_retry: bool) -> Self {
        Self { should_retry: Some(should_retry), ..self }
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
        let advice = self.should_retry.map(|advice| ("stripe-should-retry", if advice { "true" } else { "false" }));
        let headers = [(CONTENT_TYPE, "application/json".to_owned()), (REQUEST_ID, new_id("req"))];
        let further = (AppendHeaders(replayed), AppendHeaders(challenge), AppendHeaders(advice));
        (self.status, headers, further.0, further.1, further.2, self.body).into_response()
    }
}
